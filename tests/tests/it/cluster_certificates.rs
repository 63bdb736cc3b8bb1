//! Certificates that are replaced while a cluster runs, and peers that finish no handshake.

use std::time::Duration;

use weir_executor::tls::TlsFiles;
use weir_tests::authority::Authority;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::weir::Weir;

use crate::cluster_access::connect;

/// Even all of them, the authority's included, and with peers that are called anew.
#[test]
fn replaced_certificates_are_used_without_a_restart() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster =
        Cluster::up_with(Weir::new(folder.path()), &["--coordinators", "3", "--executors", "1"]);
    let executor = cluster.pid("executor-1");
    let tls = cluster.dir.join("tls");
    let former = folder.path().join("former.pem");
    std::fs::copy(tls.join("authority.pem"), &former).expect("the disk has room");
    let (url, leader) = (cluster.urls().remove(0), cluster.leader());

    let authority = Authority::default();
    authority.write(&tls);
    for (name, _) in cluster.processes() {
        authority.issue(&tls, &name);
    }
    wait_until("all coordinators to show their new certificates", || {
        let status = cluster.status();
        let members = status["coordinators"].as_array().cloned().unwrap_or_default();
        members.len() == 3 && members.iter().all(|member| member["role"] != "unreachable")
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let refused = connect(url, TlsFiles { authority: former, identity: None });
    let refused = runtime.block_on(refused).expect_err("it has a new certificate");
    assert!(refused.message().contains("UnknownIssuer"), "{refused:?}");

    // A follower that is called again by its leader; then a leader that all look for again.
    let names = ["coordinator-1", "coordinator-2", "coordinator-3"];
    let follower = names.into_iter().find(|name| *name != leader).expect("two follow");
    for name in [follower, &leader] {
        cluster.kill(name);
        cluster.start(name);
        // It knows of this only by being told.
        cluster.run(&["cluster", "token", "create", name, "--role", "viewer"]).expect_code(0);
        wait_until("all coordinators to hold the same facts", || {
            let status = cluster.status();
            let members = status["coordinators"].as_array().cloned().unwrap_or_default();
            members.len() == 3
                && members.iter().any(|member| member["role"] == "leader")
                && members.iter().all(|member| {
                    member["applied_index"] == members[0]["applied_index"]
                        && member["state_hash"] == members[0]["state_hash"]
                        && member["role"] != "unreachable"
                })
        });
    }
    wait_until("the executor to be back", || cluster.executors() == ["executor-1"]);
    assert_eq!(cluster.status()["executors"][0]["pid"], executor, "it is the same process");
}

#[test]
fn who_says_nothing_to_a_handshake_is_given_up() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    Authority::default().write(folder.path());
    let tls = TlsFiles { authority: folder.path().join("authority.pem"), identity: None };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("https://{}", silent.local_addr().expect("it is bound"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let connected = runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), connect(url, tls)).await });
    let refused = connected.expect("it does not wait for ever");
    refused.expect_err("there was no handshake");
}
