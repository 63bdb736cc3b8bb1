//! The arrows between crates are those of ARCHITECTURE.md, and no others.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Who may depend on whom.
const ARROWS: &[(&str, &[&str])] = &[
    ("weir-spec", &[]),
    ("weir-connectors", &["weir-spec"]),
    ("weir-plan", &["weir-spec", "weir-connectors"]),
    ("weir-ledger", &["weir-spec", "weir-connectors", "weir-plan"]),
    ("weir-proto", &[]),
    ("weir-executor", &["weir-spec", "weir-connectors", "weir-plan", "weir-proto"]),
    (
        "weir-coordinator",
        &[
            "weir-spec",
            "weir-connectors",
            "weir-plan",
            "weir-ledger",
            "weir-executor",
            "weir-proto",
        ],
    ),
    (
        "weir-cli",
        &[
            "weir-spec",
            "weir-connectors",
            "weir-plan",
            "weir-ledger",
            "weir-executor",
            "weir-coordinator",
            "weir-proto",
        ],
    ),
];

/// May depend on everything, and nothing depends on them.
const LEAVES: &[&str] = &["weir-tests", "weir-benches"];

#[test]
fn crates_depend_only_along_the_arrows() {
    let metadata = MetadataCommand::new()
        .manifest_path(weir_tests::weir::repository().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata answers");
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        if LEAVES.contains(&name) {
            continue;
        }
        let arrows = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} is new: add it to ARCHITECTURE.md and to ARROWS"));
        for dependency in &package.dependencies {
            let target = dependency.name.as_str();
            if target.starts_with("weir-") && dependency.kind == DependencyKind::Normal {
                assert!(arrows.contains(&target), "{name} must not depend on {target}");
            }
        }
    }
}

#[test]
fn pipeline_language_and_ledger_do_no_io() {
    let metadata = MetadataCommand::new()
        .manifest_path(weir_tests::weir::repository().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata answers");
    for package in metadata.workspace_packages() {
        if !["weir-spec", "weir-ledger"].contains(&package.name.as_str()) {
            continue;
        }
        for dependency in &package.dependencies {
            let io = ["tokio", "reqwest", "sqlx", "object_store", "rustix"];
            assert!(
                dependency.kind != DependencyKind::Normal
                    || !io.contains(&dependency.name.as_str()),
                "{} must do no I/O, but depends on {}",
                package.name,
                dependency.name
            );
        }
    }
}
