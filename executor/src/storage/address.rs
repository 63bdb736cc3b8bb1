//! How a storage is written on a command line: a path, or a URL. What opens it (keys, endpoint, region) is in
//! the environment of each process.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

/// Where a storage is. Holds no credentials: it is in command lines and files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageAddress {
    Folder(PathBuf),
    Objects { service: Service, bucket: String, prefix: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    S3,
    Azure,
    Gcs,
}

impl Service {
    pub(super) fn scheme(self) -> &'static str {
        match self {
            Service::S3 => "s3",
            Service::Azure => "az",
            Service::Gcs => "gs",
        }
    }
}

/// Variables of the environment whose values are never to be shown.
pub const SECRET_VARIABLES: [&str; 9] = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
];

impl FromStr for StorageAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("write a folder, or a URL such as s3://bucket/prefix".to_owned());
        }
        if !text.contains("://") {
            return Ok(Self::Folder(text.into()));
        }
        // A URL that is refused may have a key in it: none is repeated.
        let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
        let has_more = url.query().is_some() || url.fragment().is_some();
        if !url.username().is_empty() || url.password().is_some() || has_more {
            return Err(
                "a storage's URL has no user, password, `?` or `#`: credentials, endpoint and region \
                 are in the environment of each process (for S3 AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION)"
                    .to_owned(),
            );
        }
        let service = match url.scheme() {
            "file" => {
                let path = url.to_file_path();
                return path.map(Self::Folder).map_err(|()| {
                    "write file:///path: a folder on this machine, from its root".to_owned()
                });
            }
            "s3" => Service::S3,
            "az" => Service::Azure,
            "gs" => Service::Gcs,
            other => {
                return Err(format!(
                    "`{other}://` is not known: a storage is a folder, file://, s3://, az:// or gs://"
                ));
            }
        };
        let bucket = url.host_str().filter(|_| url.port().is_none()).unwrap_or_default();
        if bucket.is_empty() {
            return Err(format!("write {}://BUCKET/PREFIX", service.scheme()));
        }
        let prefix = url.path().trim_matches('/').to_owned();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=".contains(c);
        if !prefix.chars().all(is_plain) || prefix.split('/').any(|part| part == "..") {
            return Err(
                "the prefix may have letters, digits, `-`, `_`, `.`, `=` and `/`".to_owned()
            );
        }
        Ok(Self::Objects { service, bucket: bucket.to_owned(), prefix })
    }
}

impl fmt::Display for StorageAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Objects { service, bucket, prefix } if prefix.is_empty() => {
                write!(f, "{}://{bucket}", service.scheme())
            }
            Self::Objects { service, bucket, prefix } => {
                write!(f, "{}://{bucket}/{prefix}", service.scheme())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_is_a_folder_or_a_place_in_a_bucket() {
        for (text, shown) in [
            ("state/storage", "state/storage"),
            ("file:///var/weir", "/var/weir"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("az://container/weir", "az://container/weir"),
            ("gs://bucket/weir", "gs://bucket/weir"),
        ] {
            let address: StorageAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address), "it is read as it is shown");
        }
    }

    #[test]
    fn credentials_have_no_place_in_a_url_and_are_not_repeated() {
        for text in
            ["s3://key:hidden@bucket/a", "s3://bucket/a?secret=hidden", "s3://bucket#hidden"]
        {
            let error = text.parse::<StorageAddress>().expect_err(text);
            assert!(error.contains("AWS_SECRET_ACCESS_KEY"), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
        for text in
            ["", "ftp://host/a", "s3:///a", "s3://bucket/a%20b", "file://host/a", "s3://b:1/a"]
        {
            text.parse::<StorageAddress>().expect_err(text);
        }
    }
}
