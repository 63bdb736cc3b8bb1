//! Reads what a command needs from disk: the pipeline file, `weir.yaml`, secrets, the state folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use weir_connectors::{ConnectorContext, Redactor, Secrets};
use weir_coordinator::EngineOptions;
use weir_spec::{Diagnostic, Parsed, SharedConnections, render_diagnostics};

use crate::args::Global;
use crate::failure::Failure;
use crate::token;

/// A pipeline file that has been read and found free of mistakes.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub path: PathBuf,
    pub text: String,
    pub parsed: Parsed,
}

/// Reads and parses a pipeline file with the shared connections beside it. The mistakes come back as
/// values, so that `validate` can go on with the next file.
pub(crate) fn load(path: &Path) -> Result<Result<Loaded, Vec<Diagnostic>>, Failure> {
    let text = read(path)?;
    let name = path.display().to_string();
    let shared = match shared_connections(path)? {
        Ok(shared) => shared,
        Err(diagnostics) => return Ok(Err(diagnostics)),
    };
    Ok(weir_spec::parse_with(&name, &text, &shared).map(|parsed| Loaded {
        path: path.to_owned(),
        text,
        parsed,
    }))
}

/// Like [`load`], but mistakes end the command. Warnings are printed.
pub(crate) fn load_valid(path: &Path) -> Result<Loaded, Failure> {
    let loaded = load(path)?.map_err(|diagnostics| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        Failure::Usage(render_diagnostics(&diagnostics, &text))
    })?;
    if !loaded.parsed.warnings.is_empty() {
        eprintln!("{}", render_diagnostics(&loaded.parsed.warnings, &loaded.text));
    }
    Ok(loaded)
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::Usage(format!("failed to read {}: {error}", path.display())))?;
    String::from_utf8(bytes).map_err(|error| {
        Failure::Usage(format!(
            "{} is not UTF-8 (byte {}): save it as UTF-8",
            path.display(),
            error.utf8_error().valid_up_to()
        ))
    })
}

/// The connections of `weir.yaml` in the pipeline's folder; empty without such a file.
pub(crate) fn shared_connections(
    pipeline: &Path,
) -> Result<Result<SharedConnections, Vec<Diagnostic>>, Failure> {
    let Some(path) = workspace_beside(pipeline) else {
        return Ok(Ok(SharedConnections::default()));
    };
    let text = read(&path)?;
    Ok(weir_spec::parse_workspace(&path.display().to_string(), &text))
}

/// The text of the `weir.yaml` in the pipeline's folder; empty without such a file.
pub(crate) fn workspace_text(pipeline: &Path) -> Result<String, Failure> {
    workspace_beside(pipeline).map_or_else(|| Ok(String::new()), |path| read(&path))
}

fn workspace_beside(pipeline: &Path) -> Option<PathBuf> {
    let path = folder_of(pipeline).join("weir.yaml");
    (path.is_file() && path.as_path() != pipeline).then_some(path)
}

/// A `weir.yaml` itself; its mistakes end the command.
pub(crate) fn workspace(path: &Path) -> Result<SharedConnections, Failure> {
    let text = read(path)?;
    weir_spec::parse_workspace(&path.display().to_string(), &text)
        .map_err(|diagnostics| Failure::Usage(render_diagnostics(&diagnostics, &text)))
}

/// The folder in which a pipeline's relative paths start.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// As [`folder_of`], as other processes find it.
pub(crate) fn absolute_folder_of(path: &Path) -> Result<String, Failure> {
    let folder = folder_of(path);
    let absolute = std::path::absolute(&folder)
        .map_err(|error| Failure::Usage(format!("{}: {error}", folder.display())))?;
    absolute.into_os_string().into_string().map_err(|folder| {
        Failure::Usage(format!("the folder {} is not UTF-8", Path::new(&folder).display()))
    })
}

/// Where state lives for a pipeline file, or for commands that name none (`start` is then the current
/// folder). Depends on `start` alone, so that the same pipeline always finds its ledger.
pub(crate) fn state_dir(global: &Global, start: &Path) -> PathBuf {
    if let Some(state) = &global.state {
        return state.clone();
    }
    let start = start.canonicalize().unwrap_or_else(|_| start.to_owned());
    let with = |names: &[&str]| {
        start
            .ancestors()
            .find(|folder| names.iter().any(|name| folder.join(name).exists()))
            .map(|folder| folder.join(".weir"))
    };
    with(&[".weir", "weir.yaml"]).or_else(|| with(&[".git"])).unwrap_or_else(|| start.join(".weir"))
}

/// What connectors are given for a pipeline in `folder`.
pub(crate) fn context(
    global: &Global,
    folder: &Path,
    redactor: &Redactor,
) -> Result<ConnectorContext, Failure> {
    let mut secrets = Secrets::from_environment();
    // Who runs a pipeline does not get more power by it.
    for name in [token::VARIABLE, token::ADMIN_VARIABLE] {
        if let Some(token) = secrets.environment.remove(name) {
            redactor.register(&token);
        }
    }
    if let Some(path) = &global.secrets_file {
        secrets.file = read_secrets(path)?;
    }
    // Known before anything is opened, so that nothing can be logged before it is known.
    for (name, value) in &secrets.environment {
        if name.starts_with("WEIR_SECRET_") {
            redactor.register(value);
        }
    }
    for value in secrets.file.values() {
        redactor.register(value);
    }
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    Ok(ConnectorContext::new(folder, secrets, redactor.clone()))
}

fn read_secrets(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let text = read(path)?;
    warn_if_open(path);
    let mut secrets = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            // The line itself may be a secret: only its number is shown.
            return Err(Failure::Usage(format!(
                "{}:{}: write NAME=VALUE",
                path.display(),
                index + 1
            )));
        };
        secrets.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    Ok(secrets)
}

/// A file with a secret is for its owner only.
pub(crate) fn warn_if_open(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map(|meta| meta.permissions().mode()).unwrap_or(0);
    if mode & 0o077 != 0 {
        let path = path.display();
        eprintln!("warning: {path} can be read by others: run `chmod 600 {path}`");
    }
}

pub(crate) fn engine_options(
    global: &Global,
    start: &Path,
    context: ConnectorContext,
) -> EngineOptions {
    let cores = std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN);
    EngineOptions {
        state_dir: state_dir(global, start),
        memory_bytes: global.memory,
        slots: global.parallelism.unwrap_or(cores),
        context,
    }
}
