//! `weir dead-letters list|show|replay`: rows that a run rejected.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indexmap::IndexMap;
use weir_connectors::Redactor;
use weir_coordinator::replay::unreadable_rows;
use weir_coordinator::{DeadLetter, RunRequest, exclusively, history};
use weir_proto::v1::{DeadLettersRequest, ReplayStart, RunStatus};
use weir_spec::{NodeName, PipelineName};

use super::submit::{place, print_submitted, wait};
use crate::args::{ClusterArgs, DeadLettersCommand, Global, Output};
use crate::client::{Client, convert, new_request_id};
use crate::failure::Failure;
use crate::{files, output};

pub(crate) async fn dead_letters(
    global: &Global,
    command: DeadLettersCommand,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    match command {
        DeadLettersCommand::List { run, node, limit, cluster } => {
            list(global, &run, node, limit, &cluster).await
        }
        DeadLettersCommand::Show { id, cluster } => show(global, &id, &cluster).await,
        DeadLettersCommand::Replay { run, file, node, rows, wait, request_id, cluster } => {
            let wanted = Wanted { run: &run, file: file.as_deref(), node, rows: rows.as_deref() };
            match Client::named(&cluster)? {
                Some(client) => {
                    let request_id = request_id.unwrap_or_else(new_request_id);
                    replay_on_cluster(global, client, wanted, request_id, wait, &cluster).await
                }
                None => replay(global, wanted, redactor).await,
            }
        }
    }
}

async fn list(
    global: &Global,
    run: &str,
    node: Option<String>,
    limit: usize,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let (letters, total) = match Client::named(cluster)? {
        Some(mut client) => {
            let (node, id) = (node.unwrap_or_default(), String::new());
            let limit = u64::try_from(limit).unwrap_or(u64::MAX);
            let request = DeadLettersRequest { run: run.to_owned(), node, id, limit };
            read(&mut client, request).await?
        }
        None => {
            let (node, state_dir) = (node.map(NodeName::new), super::state_dir_here(global));
            history::dead_letters(&state_dir, run, node.as_ref(), limit, |_| true).await?
        }
    };
    if global.output == Output::Json {
        output::json(&letters)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = letters
        .iter()
        .map(|letter| {
            vec![
                letter.id.clone(),
                letter.node.to_string(),
                letter.reasons.join("; "),
                shortened(&letter.row.to_string()),
            ]
        })
        .collect();
    output::table(&["ID", "NODE", "REASONS", "ROW"], rows)?;
    let left = total.saturating_sub(letters.len() as u64);
    if left > 0 {
        output::line(&format!("{left} more: --limit {total}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// With how many there are, as far as that is known.
async fn read(
    client: &mut Client,
    request: DeadLettersRequest,
) -> Result<(Vec<DeadLetter>, u64), Failure> {
    let (letters, total) = client.dead_letters(request).await?;
    let letters: Vec<DeadLetter> =
        letters.into_iter().map(convert::dead_letter).collect::<Result<_, _>>()?;
    let total = total.unwrap_or(letters.len() as u64);
    Ok((letters, total))
}

async fn show(global: &Global, id: &str, cluster: &ClusterArgs) -> Result<ExitCode, Failure> {
    let run = id.split('/').next().unwrap_or(id);
    let wanted = id.to_owned();
    let (letters, _) = match Client::named(cluster)? {
        Some(mut client) => {
            let (run, id, limit) = (run.to_owned(), wanted, 1);
            read(&mut client, DeadLettersRequest { run, node: String::new(), id, limit }).await?
        }
        None => {
            let state_dir = super::state_dir_here(global);
            let is_wanted = move |letter: &DeadLetter| letter.id == wanted;
            history::dead_letters(&state_dir, run, None, 1, is_wanted).await?
        }
    };
    let letter = letters.into_iter().next().ok_or_else(|| {
        Failure::Usage(format!("there is no dead letter {id}: weir dead-letters list {run}"))
    })?;
    output::json(&letter)?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be replayed.
struct Wanted<'command> {
    run: &'command str,
    /// The pipeline as mended.
    file: Option<&'command Path>,
    node: Option<String>,
    /// Mended rows.
    rows: Option<&'command Path>,
}

/// Rejected rows become the whole input of the node that rejected them, in a run of its own that feeds
/// only the sinks behind it. Other inputs of a join are read again; what was loaded is not touched.
async fn replay(
    global: &Global,
    Wanted { run, file, node, rows }: Wanted<'_>,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let state_dir = super::state_dir_here(global);
    let frozen = history::frozen(&state_dir, run).await?;
    let (spec, text, folder) = match file {
        Some(file) => {
            let loaded = files::load_valid(file)?;
            let folder = files::folder_of(file);
            (loaded.parsed.spec, loaded.text, folder)
        }
        None => (frozen.spec, frozen.spec_text, frozen.base_dir),
    };
    let node = node.map(NodeName::new);
    // While the run is going on it rejects more rows; and only one process writes.
    let pipeline = PipelineName(frozen.pipeline.clone());
    let waiting = |holder| eprintln!("waiting for {holder}, which runs the pipeline");
    let writing = given_rows(&state_dir, &frozen.pipeline, &frozen.run, node, rows);
    let given = exclusively(&state_dir, &pipeline, waiting, writing).await??;
    if given.is_empty() {
        output::line("nothing to replay: the run has no dead letters")?;
        return Ok(ExitCode::SUCCESS);
    }
    let context = files::context(global, &folder, redactor)?;
    let mut options = files::engine_options(global, &folder, context);
    options.state_dir = state_dir;
    let inputs = history::validated_columns(&options.state_dir, &frozen.run).await?;
    let spec =
        weir_coordinator::replay::replayed(&spec, &given, &inputs).map_err(Failure::Usage)?;
    let replay_of = Some(frozen.run.clone());
    let request = RunRequest { resume: None, fresh: false, replay_of, ..frozen.request };
    super::run::execute(global, options, &spec, &text, request).await
}

/// As [`replay`], by the cluster.
async fn replay_on_cluster(
    global: &Global,
    mut client: Client,
    Wanted { run, file, node, rows }: Wanted<'_>,
    request_id: String,
    is_watched: bool,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let mut start =
        ReplayStart { node: node.unwrap_or_default(), request_id, ..ReplayStart::default() };
    if let Some(file) = file {
        let loaded = files::load_valid(file)?;
        start.base_dir = files::absolute_folder_of(&loaded.path)?;
        start.workspace = files::workspace_text(&loaded.path)?;
        start.file_name = loaded.path.display().to_string();
        start.pipeline = loaded.text;
    }
    if let Some(rows) = rows {
        let failed = |error| Failure::Usage(format!("failed to read {}: {error}", rows.display()));
        let known = std::fs::metadata(rows).map_err(failed)?;
        if !known.is_file() {
            return Err(Failure::Usage(format!("{} is not a file", rows.display())));
        }
        start.rows_bytes = Some(known.len());
    }
    let known = client.run(run).await?;
    start.run = known.run.clone();
    if matches!(known.status(), RunStatus::Queued | RunStatus::Running) {
        // While the run is going on it rejects more rows.
        eprintln!("waiting for run {}, which goes on", known.run);
        client.watch(&known.run, |_| {}).await?;
    }
    let answer = client.replay(start, rows.map(Path::to_owned)).await?;
    if answer.run.is_empty() {
        output::line("nothing to replay: the run has no dead letters")?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = place(cluster);
    match is_watched {
        true => wait(global, &mut client, &answer.run, &place).await,
        false => print_submitted(global, &answer, None, &place),
    }
}

/// Lines that a source could not read are raw text: what they should have been only a person can say.
fn check_replayable(letters: &[DeadLetter]) -> Result<(), Failure> {
    match letters.iter().find(|letter| !letter.row.is_object()) {
        None => Ok(()),
        Some(letter) => Err(Failure::Usage(unreadable_rows(&letter.node))),
    }
}

/// The rows to replay, written as files.
async fn given_rows(
    state_dir: &Path,
    pipeline: &str,
    run: &str,
    node: Option<NodeName>,
    rows: Option<&Path>,
) -> Result<IndexMap<NodeName, PathBuf>, Failure> {
    // A folder of its own: an interrupted replay needs its rows until it is finished.
    let now = chrono::Utc::now().format("%Y%m%d-%H%M%S%3f");
    let folder = state_dir.join(pipeline).join("replay").join(format!("{run}-{now}"));
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    if let (Some(rows), Some(node)) = (rows, &node) {
        if !rows.is_file() {
            return Err(Failure::Usage(format!("{} is not a file", rows.display())));
        }
        return Ok(IndexMap::from([(node.clone(), copy_rows(&folder, node, rows)?)]));
    }
    let (letters, _) =
        history::dead_letters(state_dir, run, node.as_ref(), usize::MAX, |_| true).await?;
    check_replayable(&letters)?;
    write_rows(&folder, &letters)
}

/// The rows as they are now, whatever becomes of the file.
fn copy_rows(folder: &Path, node: &NodeName, rows: &Path) -> Result<PathBuf, Failure> {
    let copy = folder.join(format!("{node}.jsonl"));
    std::fs::create_dir_all(folder).and_then(|()| std::fs::copy(rows, &copy)).map_err(|error| {
        Failure::Run(format!("failed to copy {} to {}: {error}", rows.display(), copy.display()))
    })?;
    Ok(copy)
}

/// One JSON-lines file a node.
fn write_rows(
    folder: &Path,
    letters: &[DeadLetter],
) -> Result<IndexMap<NodeName, PathBuf>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::Run(format!("failed to write rows to replay into {}: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut given: IndexMap<NodeName, PathBuf> = IndexMap::new();
    for letter in letters {
        given
            .entry(letter.node.clone())
            .or_insert_with(|| folder.join(format!("{}.jsonl", letter.node)));
    }
    for (node, path) in &given {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(failed)?);
        for letter in letters.iter().filter(|letter| letter.node == *node) {
            writeln!(file, "{}", letter.row).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
    }
    Ok(given)
}

/// The first 80 characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
