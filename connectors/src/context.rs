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
        let forms = shown_forms(value);
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

/// How a value may appear in what others send back and in what is logged of that.
fn shown_forms(value: &str) -> Vec<String> {
    use base64::Engine as _;
    let json = |text: &str| {
        let quoted = serde_json::Value::from(text).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let plain = json(value);
    let ascii: String = plain.chars().map(unicode_escaped_unless_ascii).collect();
    // Some servers escape what could end a script element.
    let for_html =
        |text: &str| text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let in_json = [plain.clone(), ascii.clone(), for_html(&plain), for_html(&ascii)];
    let in_html = value
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;");
    let mut forms = vec![value.to_owned(), in_html];
    // As it stands inside a line of a JSON log, and as JSON inside of it.
    forms.extend(in_json.iter().map(|text| json(text)));
    forms.extend(in_json);
    forms.push(percent_encoded(value));
    forms.push(url::form_urlencoded::byte_serialize(value.as_bytes()).collect());
    forms.push(base64::engine::general_purpose::STANDARD.encode(value));
    forms.push(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value));
    forms
}

fn unicode_escaped_unless_ascii(character: char) -> String {
    if character.is_ascii() {
        return character.to_string();
    }
    character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// Everything but letters, digits and `-._~` as `%XX`.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
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

    /// As [`resolve`](Self::resolve), of a URL: a secret inside of it is taken literally, whatever
    /// characters it has. One that is the whole URL stays as it is.
    pub fn resolve_url(&self, text: &TemplateText) -> Result<String, ConnectorError> {
        let written = text.as_str().trim();
        let is_whole = written.starts_with("{{") && written.find("}}") == Some(written.len() - 2);
        self.resolve_with(text, |secret| if is_whole { secret } else { percent_encoded(&secret) })
    }

    /// Renders `env` and `secret`. Every resolved secret, and the password inside an `env` value that
    /// is a URL, is registered with the redactor. The result must not be stored or logged.
    pub fn resolve(&self, text: &TemplateText) -> Result<String, ConnectorError> {
        self.resolve_with(text, |secret| secret)
    }

    fn resolve_with(
        &self,
        text: &TemplateText,
        inserted: impl Fn(String) -> String,
    ) -> Result<String, ConnectorError> {
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
                Some(inserted(value))
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

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: &str = "p@ss/w#rd:%41\"\\é<&";

    fn context() -> ConnectorContext {
        let file = BTreeMap::from([
            ("PW".to_owned(), ODD.to_owned()),
            ("DSN".to_owned(), "postgres://u:p%40@h/db".to_owned()),
        ]);
        let secrets = Secrets { environment: BTreeMap::new(), file };
        ConnectorContext::new("/", secrets, Redactor::default())
    }

    #[test]
    fn a_secret_inside_a_url_is_taken_literally() {
        let context = context();
        let text = TemplateText::new("postgres://u:{{ secret.PW }}@h/db");
        let url = url::Url::parse(&context.resolve_url(&text).expect("known")).expect("a URL");
        assert_eq!((url.host_str(), url.path()), (Some("h"), "/db"));
        let password = url.password().expect("a password");
        let pair = format!("p={}", password.replace('+', "%2B"));
        let decoded = url::form_urlencoded::parse(pair.as_bytes()).next().expect("a pair").1;
        assert_eq!(decoded, ODD);
        let whole = context.resolve_url(&TemplateText::new("{{ secret.DSN }}")).expect("known");
        assert_eq!(whole, "postgres://u:p%40@h/db");
    }

    #[test]
    fn a_secret_is_hidden_in_every_form_in_which_others_send_it_back() {
        let context = context();
        context.resolve(&TemplateText::new("{{ secret.PW }}")).expect("known");
        for form in shown_forms(ODD) {
            let shown = context.redactor.redact(&format!("before {form} after"));
            assert_eq!(shown, "before [secret] after", "{form}");
        }
        let echoed = r##"{"header":"p@ss/w#rd:%41\"\\\u00e9\u003c\u0026"}"##;
        assert!(!context.redactor.redact(echoed).contains("w#rd"), "{echoed}");
    }
}
