//! Tokens: the secrets that say who asks.

use std::path::Path;

use tonic::metadata::{Ascii, MetadataValue};

use crate::failure::Failure;
use crate::files;

/// Of a command.
pub(crate) const VARIABLE: &str = "WEIR_TOKEN";
/// Of the first admin, for a coordinator.
pub(crate) const ADMIN_VARIABLE: &str = "WEIR_ADMIN_TOKEN";

/// Fewer characters can be guessed.
const SHORTEST_ADMIN: usize = 16;

/// As it is sent. Its `Debug` and the logs of the transport do not show it.
#[derive(Clone, Debug)]
pub(crate) struct Token(MetadataValue<Ascii>);

impl Token {
    pub(crate) fn from_file(path: &Path) -> Result<Self, Failure> {
        Self::new(&read(path)?, &path.display().to_string())
    }

    pub(crate) fn from_environment() -> Result<Option<Self>, Failure> {
        let token = std::env::var(VARIABLE).unwrap_or_default();
        let token = token.trim();
        (!token.is_empty()).then(|| Self::new(token, VARIABLE)).transpose()
    }

    fn new(token: &str, place: &str) -> Result<Self, Failure> {
        let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
        let mut value =
            value.map_err(|_| Failure::Usage(format!("{place} holds no token of one line")))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    pub(crate) fn header(&self) -> MetadataValue<Ascii> {
        self.0.clone()
    }
}

/// What a coordinator takes for an admin's token besides those that the cluster knows.
pub(crate) fn admin(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let (token, place) = match file {
        Some(file) => (read(file)?, file.display().to_string()),
        None => (std::env::var(ADMIN_VARIABLE).unwrap_or_default(), ADMIN_VARIABLE.to_owned()),
    };
    let token = token.trim();
    if token.is_empty() {
        return Ok(None);
    }
    if token.len() < SHORTEST_ADMIN {
        return Err(Failure::Usage(format!(
            "{place}: an admin's token has at least {SHORTEST_ADMIN} characters"
        )));
    }
    Ok(Some(token.to_owned()))
}

fn read(path: &Path) -> Result<String, Failure> {
    let token = files::read(path)?;
    files::warn_if_open(path);
    if token.trim().is_empty() {
        return Err(Failure::Usage(format!("{} is empty: there is no token", path.display())));
    }
    Ok(token.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        let token = Token::new("weir_secret", "a file").expect("it is a token");
        assert!(!format!("{token:?}").contains("secret"));
        assert_eq!(token.header().to_str().ok(), Some("Bearer weir_secret"));
        let wrong = Token::new("two\nsecret", "a file").expect_err("two lines");
        assert_eq!(wrong.message(), "a file holds no token of one line");
    }

    #[test]
    fn an_admins_token_is_long_and_not_shown() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let write = |text: &str| std::fs::write(file.path(), text).expect("the disk has room");
        write("0123456789abcdef\n");
        let token = admin(Some(file.path())).expect("it is long enough");
        assert_eq!(token.as_deref(), Some("0123456789abcdef"));
        for wrong in ["short-s3cret", " \n"] {
            write(wrong);
            let failure = admin(Some(file.path())).expect_err("too short");
            assert!(!failure.message().contains("s3cret"), "{}", failure.message());
        }
    }
}
