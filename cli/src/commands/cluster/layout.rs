//! Which processes a cluster has, where they listen, and how each is started. No I/O.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use weir_executor::storage::StorageAddress;
use weir_executor::tls::IdentityFiles;

use super::certificates;
use crate::cluster_file::{self, ClusterFile, CoordinatorEntry, ExecutorEntry, ProcessEntry};

/// What every process is started with.
#[derive(Clone, Debug, Default)]
pub(super) struct Common {
    pub memory_bytes: u64,
    pub secrets_file: Option<PathBuf>,
    pub log: Option<String>,
    pub is_insecure: bool,
    /// Default: a folder of the cluster's own.
    pub storage: Option<StorageAddress>,
}

/// A cluster in `dir` with coordinators and executors at these URLs; no process of it has a pid yet.
pub(super) fn cluster(
    dir: &Path,
    coordinators: &[(u64, String)],
    executors: &[String],
    slots: Option<NonZeroUsize>,
    common: &Common,
) -> ClusterFile {
    let own = || StorageAddress::Folder(dir.join("storage"));
    let storage = common.storage.clone().unwrap_or_else(own);
    let is_all_here = matches!(storage, StorageAddress::Folder(_));
    let storage = storage.to_string();
    let process = |name: String, arguments: Vec<String>| {
        let mut arguments = arguments;
        arguments.extend(["--dir".to_owned(), text(&dir.join(&name))]);
        arguments.extend(["--storage".to_owned(), storage.clone()]);
        arguments.extend(common_arguments(common));
        arguments.extend(security_arguments(dir, &name, common));
        ProcessEntry { pid: 0, log: dir.join(format!("{name}.log")), name, arguments }
    };
    let members: Vec<String> = coordinators.iter().map(|(id, url)| format!("{id}={url}")).collect();
    let urls: Vec<&str> = coordinators.iter().map(|(_, url)| url.as_str()).collect();
    let coordinators = coordinators.iter().map(|(id, url)| {
        let address = address(url);
        let mut arguments = words(&[
            "coordinator",
            "--id",
            &id.to_string(),
            "--listen",
            address,
            "--url",
            url,
            "--members",
            &members.join(","),
        ]);
        if !common.is_insecure {
            let token = text(&cluster_file::admin_token(dir));
            arguments.extend(["--admin-token-file".to_owned(), token]);
        }
        let process = process(coordinator_name(*id), arguments);
        CoordinatorEntry { id: *id, url: url.clone(), process }
    });
    let executors = (1..).zip(executors).map(|(number, url)| {
        let id = format!("executor-{number}");
        let coordinators = urls.join(",");
        let mut arguments = words(&["executor", "--id", &id, "--coordinators", &coordinators]);
        arguments.extend(words(&["--listen", address(url), "--url", url]));
        if let Some(slots) = slots {
            arguments.extend(["--slots".to_owned(), slots.to_string()]);
        }
        if is_all_here {
            arguments.extend(words(&["--exchange-compression", "none"]));
        }
        let process = process(id.clone(), arguments);
        ExecutorEntry { id, url: url.clone(), process }
    });
    ClusterFile {
        coordinators: coordinators.collect(),
        executors: executors.collect(),
        storage: storage.clone(),
    }
}

/// A coordinator that is to be added to the cluster of another one, and is started as that is otherwise.
pub(super) fn joining(
    dir: &Path,
    model: &CoordinatorEntry,
    id: u64,
    url: &str,
) -> CoordinatorEntry {
    let name = coordinator_name(id);
    let identity = certificates::identity(dir, &name);
    let mut arguments = Vec::new();
    let model = without_founding(&model.process.arguments);
    let mut words = model.iter();
    while let Some(word) = words.next() {
        let own = match word.as_str() {
            "--id" => id.to_string(),
            "--listen" => address(url).to_owned(),
            "--url" => url.to_owned(),
            "--dir" => text(&dir.join(&name)),
            "--tls-certificate" => text(&identity.certificate),
            "--tls-key" => text(&identity.key),
            _ => {
                arguments.push(word.clone());
                continue;
            }
        };
        words.next();
        arguments.extend([word.clone(), own]);
    }
    let log = dir.join(format!("{name}.log"));
    let process = ProcessEntry { pid: 0, log, name, arguments };
    CoordinatorEntry { id, url: url.to_owned(), process }
}

/// The arguments of a coordinator that has been part of a cluster: if it has lost its disk, it founds no other one.
pub(super) fn without_founding(arguments: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--members" {
            words.next();
            kept.push("--join".to_owned());
        } else {
            kept.push(word.clone());
        }
    }
    kept
}

pub(super) fn coordinator_name(id: u64) -> String {
    format!("coordinator-{id}")
}

fn address(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, address)| address)
}

fn common_arguments(common: &Common) -> Vec<String> {
    let mut arguments = vec!["--memory".to_owned(), common.memory_bytes.to_string()];
    if let Some(file) = &common.secrets_file {
        arguments.extend(["--secrets-file".to_owned(), text(file)]);
    }
    if let Some(log) = &common.log {
        arguments.extend(["--log".to_owned(), log.clone()]);
    }
    arguments
}

fn security_arguments(dir: &Path, name: &str, common: &Common) -> Vec<String> {
    if common.is_insecure {
        return words(&["--insecure"]);
    }
    let IdentityFiles { certificate, key } = certificates::identity(dir, name);
    let (authority, certificate, key) =
        (text(&cluster_file::authority(dir)), text(&certificate), text(&key));
    words(&["--tls-authority", &authority, "--tls-certificate", &certificate, "--tls-key", &key])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn processes_are_started_with_command_lines_that_weir_understands() {
        let common = Common {
            memory_bytes: 1 << 20,
            secrets_file: Some(PathBuf::from("/s")),
            log: Some("debug".to_owned()),
            is_insecure: false,
            storage: None,
        };
        let urls = ["https://127.0.0.1:4001".to_owned(), "https://127.0.0.1:4002".to_owned()];
        let members = [(1, urls[0].clone()), (2, urls[1].clone())];
        let executors = ["https://127.0.0.1:4004".to_owned(), "https://127.0.0.1:4005".to_owned()];
        let file = cluster(Path::new("/c"), &members, &executors, NonZeroUsize::new(3), &common);
        let parsed = |process: &ProcessEntry| {
            let line = ["weir".to_owned()].into_iter().chain(process.arguments.clone());
            let cli = Cli::try_parse_from(line).expect("it is understood");
            assert_eq!((cli.global.memory, cli.global.log.as_deref()), (1 << 20, Some("debug")));
            cli.command
        };
        let Command::Coordinator(second) = parsed(&file.coordinators[1].process) else {
            panic!("not a coordinator")
        };
        assert_eq!((second.id, &second.url), (2, &urls[1]));
        assert_eq!(second.listen.to_string(), "127.0.0.1:4002");
        assert_eq!(second.members.as_ref().map(|members| members.len()), Some(2));
        assert_eq!(second.dir, Path::new("/c/coordinator-2"));
        assert_eq!(second.admin_token_file.as_deref(), Some(Path::new("/c/admin.token")));
        assert_eq!(second.security.tls_key.as_deref(), Some(Path::new("/c/tls/coordinator-2.key")));
        let mut again = file.coordinators[1].process.clone();
        again.arguments = without_founding(&again.arguments);
        let Command::Coordinator(again) = parsed(&again) else { panic!("not a coordinator") };
        assert!(again.join && again.members.is_none());
        assert_eq!((again.id, again.listen, again.dir), (2, second.listen, second.dir.clone()));
        for model in [
            file.coordinators[0].clone(),
            joining(Path::new("/c"), &file.coordinators[0], 3, "https://127.0.0.1:4003"),
        ] {
            let joining = joining(Path::new("/c"), &model, 4, "https://127.0.0.1:4006");
            assert_eq!((joining.id, joining.process.name.as_str()), (4, "coordinator-4"));
            let Command::Coordinator(fourth) = parsed(&joining.process) else {
                panic!("not a coordinator")
            };
            assert!(fourth.join && fourth.members.is_none());
            assert_eq!((fourth.id, fourth.url.as_str()), (4, "https://127.0.0.1:4006"));
            assert_eq!(fourth.listen.to_string(), "127.0.0.1:4006");
            assert_eq!(fourth.dir, Path::new("/c/coordinator-4"));
            assert_eq!(fourth.storage, StorageAddress::Folder(PathBuf::from("/c/storage")));
            let key = fourth.security.tls_key.as_deref();
            assert_eq!(key, Some(Path::new("/c/tls/coordinator-4.key")));
        }
        let Command::Executor(second) = parsed(&file.executors[1].process) else {
            panic!("not an executor")
        };
        assert_eq!((second.id.as_str(), second.slots), ("executor-2", NonZeroUsize::new(3)));
        assert_eq!(second.coordinators, urls);
        assert_eq!(second.listen.to_string(), "127.0.0.1:4005");
        assert_eq!(second.url.as_ref(), Some(&executors[1]));
        assert_eq!(second.storage, StorageAddress::Folder(PathBuf::from("/c/storage")));
        assert_eq!(second.security.tls_key.as_deref(), Some(Path::new("/c/tls/executor-2.key")));
        assert_eq!(file.executors[1].process.log, Path::new("/c/executor-2.log"));

        let bucket: StorageAddress = "s3://bucket/weir".parse().expect("a URL");
        let common = Common { is_insecure: true, storage: Some(bucket.clone()), ..common };
        let members = [(1, "http://127.0.0.1:4001".to_owned())];
        let executors = ["http://127.0.0.1:4004".to_owned()];
        let file = cluster(Path::new("/c"), &members, &executors, None, &common);
        let Command::Coordinator(only) = parsed(&file.coordinators[0].process) else {
            panic!("not a coordinator")
        };
        assert!(only.security.insecure && only.listen.to_string() == "127.0.0.1:4001");
        assert_eq!((only.storage, file.storage.as_str()), (bucket, "s3://bucket/weir"));
    }
}
