//! One suite for every place that a cluster's storage can be in: a folder, and S3.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt as _;
use tempfile::TempDir;
use weir_executor::storage::Storage;
use weir_tests::s3::{BUCKET, S3Server};

/// A storage, and where files of this machine may be that go into it.
struct Place {
    storage: Storage,
    drafts: TempDir,
    _server: Option<S3Server>,
}

impl Place {
    fn folder() -> Self {
        let drafts = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::folder(drafts.path().join("storage"));
        Self { storage, drafts, _server: None }
    }

    fn s3() -> Self {
        let server = S3Server::start();
        let storage = open(&server, &format!("s3://{BUCKET}/some/prefix"));
        let drafts = tempfile::tempdir().expect("a temporary folder");
        Self { storage, drafts, _server: Some(server) }
    }
}

fn open(server: &S3Server, url: &str) -> Storage {
    let address = url.parse().expect("a URL");
    Storage::open_with(&address, server.environment()).expect("it can be opened")
}

async fn text(storage: &Storage, name: &str) -> Result<String, ErrorKind> {
    let bytes = storage.get(name).await.map_err(|error| error.kind())?;
    Ok(String::from_utf8(bytes.to_vec()).expect("text"))
}

async fn what_was_written_is_there_until_it_is_deleted(Place { storage, .. }: &Place) {
    assert_eq!(text(storage, "a/b").await, Err(ErrorKind::NotFound));
    storage.put("a/b", "one").await.expect("written");
    assert_eq!(text(storage, "a/b").await, Ok("one".to_owned()));
    storage.put("a/b", "two").await.expect("written over");
    assert_eq!(text(storage, "a/b").await, Ok("two".to_owned()));
    let inside = storage.within("a");
    assert_eq!(text(&inside, "b").await, Ok("two".to_owned()));
    storage.put("a/empty", "").await.expect("written");
    assert_eq!(read(storage, "a/empty").await, Vec::<u8>::new());
    storage.delete("a/b").await.expect("deleted");
    storage.delete("a/b").await.expect("what is not there is no error");
    assert_eq!(text(storage, "a/b").await, Err(ErrorKind::NotFound));
    let missing = storage.read("a/b").await.err().map(|error| error.kind());
    assert_eq!(missing, Some(ErrorKind::NotFound));
}

async fn one_of_several_creates_a_file(Place { storage, .. }: &Place) {
    for round in 0..5 {
        let name = format!("created/{round}");
        let creating = (0..8).map(|writer| {
            let (storage, name) = (storage.clone(), name.clone());
            tokio::spawn(async move { storage.create(&name, format!("by {writer}")).await })
        });
        let mut winners = Vec::new();
        for (writer, created) in creating.collect::<Vec<_>>().into_iter().enumerate() {
            match created.await.expect("no panic") {
                Ok(()) => winners.push(writer),
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(text(storage, &name).await, Ok(format!("by {}", winners[0])));
    }
    assert_eq!(storage.list("created").await.expect("listed").len(), 5, "and nothing else is left");
}

async fn read(storage: &Storage, name: &str) -> Vec<u8> {
    let mut pieces = storage.read(name).await.expect("it is there");
    let mut read = Vec::new();
    while let Some(piece) = pieces.try_next().await.expect("readable") {
        assert!(piece.len() <= 4 << 20, "a piece of {} bytes", piece.len());
        read.extend_from_slice(&piece);
    }
    read
}

async fn large_files_come_and_go_in_pieces(Place { storage, drafts, .. }: &Place) {
    // More than two parts of an upload, and not a whole number of pieces.
    let content: Vec<u8> = (0..20_500_000_u32).map(|at| (at / 7 % 251) as u8).collect();
    let file = drafts.path().join("large");
    std::fs::write(&file, &content).expect("room");
    storage.upload(file.clone(), "large/a").await.expect("uploaded");
    assert!(file.is_file(), "a copy was made");
    assert!(read(storage, "large/a").await == content, "other bytes have come back");
    storage.upload(file, "large/a").await.expect("uploaded again");
    assert_eq!(storage.list("large").await.expect("listed"), ["large/a"]);
}

async fn finished_files_are_taken_in(Place { storage, drafts, .. }: &Place) {
    let file = drafts.path().join("storage/x.tmp");
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("room");
    std::fs::write(&file, "rows").expect("room");
    storage.adopt(file.clone(), "taken/x").await.expect("taken");
    assert_eq!(text(storage, "taken/x").await, Ok("rows".to_owned()));
    assert!(!file.exists(), "it was moved");
}

async fn what_is_below_a_folder_is_listed_and_removed(Place { storage, .. }: &Place) {
    let names = ["f/1/a", "f/1/b", "f/1/deep/c", "f/10/a", "f1/a"];
    for name in names {
        storage.put(name, name).await.expect("written");
    }
    let listed = async |folder: &str| storage.list(folder).await.expect("listed");
    assert_eq!(listed("f/1").await, names[..3]);
    assert_eq!(storage.within("f").list("1/deep").await.expect("listed"), ["1/deep/c"]);
    assert_eq!(listed("nothing").await, [""; 0]);
    storage.delete_in("f/1", |name| name == "a" || name == "c").await.expect("deleted");
    assert_eq!(listed("f/1").await, ["f/1/b", "f/1/deep/c"]);
    storage.delete_all("f/1").await.expect("deleted");
    storage.delete_all("f/1").await.expect("what is not there is no error");
    assert_eq!([listed("f").await, listed("f1").await].concat(), names[3..]);
}

async fn conforms(place: &Place) {
    what_was_written_is_there_until_it_is_deleted(place).await;
    one_of_several_creates_a_file(place).await;
    large_files_come_and_go_in_pieces(place).await;
    finished_files_are_taken_in(place).await;
    what_is_below_a_folder_is_listed_and_removed(place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_a_storage() {
    conforms(&Place::folder()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_is_a_storage() {
    let place = Place::s3();
    place.storage.check().await.expect("it can be used");
    conforms(&place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_is_waited_for_and_a_wrong_one_is_not() {
    let server = S3Server::start();
    let storage = open(&server, &format!("s3://{BUCKET}/a")).waiting();
    storage.put("before", "1").await.expect("written");
    server.pause();
    let waiting = tokio::spawn({
        let storage = storage.clone();
        async move { storage.create("while", "2").await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished(), "nothing can have come of it yet");
    server.resume();
    waiting.await.expect("no panic").expect("it was waited for");
    assert_eq!(text(&storage, "while").await, Ok("2".to_owned()));

    let wrong = open(&server, "s3://no-such-bucket/a").waiting();
    for error in [wrong.get("x").await.map(drop), wrong.put("x", "1").await, wrong.check().await] {
        let error = error.expect_err("there is no such bucket");
        assert_ne!(error.kind(), ErrorKind::NotFound, "not just a missing file: {error}");
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    }
    assert!(!Path::new("s3:").exists());
}
