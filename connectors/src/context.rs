//! What a connector is given to open its system: where relative paths start, how `env` and `secret`
//! resolve, and what must never be shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use weir_spec::TemplateText;

use crate::ConnectorError;

/// Values that must not appear in any log, error, plan or ledger entry. Shared by the process;
/// whoever resolves a secret registers it here.
#[derive(Clone, Default)]
pub struct Redactor {
    values: Arc<RwLock<Vec<String>>>,
}

impl Redactor {
    /// Values shorter than four characters are not registered: hiding them would hide ordinary text.
    pub fn register(&self, value: &str) {
        let mut forms = vec![value.to_owned()];
        // As it stands inside a line of a JSON log.
        let json = serde_json::Value::from(value).to_string();
        forms.push(json.trim_matches('"').to_owned());
        forms.push(url::form_urlencoded::byte_serialize(value.as_bytes()).collect());
        use base64::Engine as _;
        forms.push(base64::engine::general_purpose::STANDARD.encode(value));
        let mut values = self.values.write().expect("no holder of this lock panics");
        for form in forms {
            if form.len() >= 4 && !values.contains(&form) {
                values.push(form);
            }
        }
        // Longest first, so that a secret that contains another is hidden whole.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    /// `text` with every registered value replaced by `[secret]`.
    pub fn redact(&self, text: &str) -> String {
        let values = self.values.read().expect("no holder of this lock panics");
        let mut clean = text.to_owned();
        for value in values.iter() {
            if clean.contains(value.as_str()) {
                clean = clean.replace(value.as_str(), "[secret]");
            }
        }
        clean
    }
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}

/// Where `{{ env.X }}` and `{{ secret.X }}` come from. `secret.X` is the environment variable
/// `WEIR_SECRET_X`, or key `X` of the secrets file.
#[derive(Clone, Default)]
pub struct Secrets {
    pub environment: BTreeMap<String, String>,
    pub file: BTreeMap<String, String>,
}

impl Secrets {
    /// The process's own environment and no file.
    pub fn from_environment() -> Self {
        Self { environment: std::env::vars().collect(), file: BTreeMap::new() }
    }
    pub fn env(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }
    pub fn secret(&self, name: &str) -> Option<&str> {
        self.environment
            .get(&format!("WEIR_SECRET_{name}"))
            .or_else(|| self.file.get(name))
            .map(String::as_str)
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

/// Everything a connector may use of the machine it runs on.
#[derive(Clone, Debug)]
pub struct ConnectorContext {
    /// Relative paths of a pipeline start here: the folder of its file.
    pub base_dir: PathBuf,
    pub secrets: Arc<Secrets>,
    pub redactor: Redactor,
}

impl ConnectorContext {
    pub fn new(base_dir: impl Into<PathBuf>, secrets: Secrets, redactor: Redactor) -> Self {
        Self { base_dir: base_dir.into(), secrets: Arc::new(secrets), redactor }
    }

    /// Renders `env` and `secret`. Every resolved secret, and the password inside an `env` value that
    /// is a URL, is registered with the redactor. The result must not be stored or logged.
    pub fn resolve(&self, text: &TemplateText) -> Result<String, ConnectorError> {
        let rendered = weir_spec::template::render_connect_time(text, &|root, name| match root {
            "env" => {
                let value = self.secrets.env(name)?.to_owned();
                // The value as a whole may be ordinary text (a host name); its password is not.
                if let Some(password) =
                    url::Url::parse(&value).ok().as_ref().and_then(url::Url::password)
                {
                    self.redactor.register(password);
                    let decoded: Option<String> = url::form_urlencoded::parse(
                        format!("p={}", password.replace('+', "%2B")).as_bytes(),
                    )
                    .next()
                    .map(|(_, value)| value.into_owned());
                    if let Some(decoded) = decoded {
                        self.redactor.register(&decoded);
                    }
                }
                Some(value)
            }
            "secret" => {
                let value = self.secrets.secret(name)?.to_owned();
                self.redactor.register(&value);
                Some(value)
            }
            _ => None,
        });
        rendered.map_err(|error| ConnectorError::config(error.to_string()))
    }

    /// An absolute path for a path of the pipeline file.
    pub fn path(&self, path: &str) -> PathBuf {
        let path = path.strip_prefix("file://").unwrap_or(path);
        if Path::new(path).is_absolute() { PathBuf::from(path) } else { self.base_dir.join(path) }
    }
}
