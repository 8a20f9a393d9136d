//! What the command line gives to editors, shells and packagers: the JSON Schema, completions, manual pages.

#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tunnel_mesh::topology::{SourceFile, diagnose, parse, schema};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tunnel_mesh(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tunnel-mesh")).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The YAML files below that directory, those of each folder together.
fn folders(under: &str) -> Vec<Vec<SourceFile>> {
    let all = std::fs::read_dir(root().join(under)).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|p| p.is_dir()).collect();
    all.sort();
    let files = |folder: &PathBuf| {
        let paths = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        let yaml = paths.filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"));
        yaml.map(|p| SourceFile { name: p.display().to_string(), text: std::fs::read(p).unwrap() }).collect()
    };
    all.iter().map(files).collect()
}

/// The documents of a file as an editor sees them; `None` where it is no YAML.
fn documents(file: &SourceFile) -> Option<Vec<Value>> {
    let text = std::str::from_utf8(file.content()).ok()?;
    let read = |document| <serde_yaml::Value as serde::Deserialize>::deserialize(document).ok();
    let all: Option<Vec<serde_yaml::Value>> = serde_yaml::Deserializer::from_str(text).map(read).collect();
    Some(all?.into_iter().filter(|d| !d.is_null()).map(json).collect())
}

fn json(value: serde_yaml::Value) -> Value {
    match value {
        serde_yaml::Value::Sequence(list) => list.into_iter().map(json).collect(),
        serde_yaml::Value::Mapping(entries) => {
            let key = |key: serde_yaml::Value| match key {
                serde_yaml::Value::String(text) => text,
                other => json(other).to_string(),
            };
            Value::Object(entries.into_iter().map(|(k, v)| (key(k), json(v))).collect())
        }
        other => serde_json::to_value(other).unwrap(),
    }
}

#[test]
fn the_schema_is_one_that_editors_take() {
    let schema = schema();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    assert!(jsonschema::meta::is_valid(&schema));
    let printed: Value = serde_json::from_str(&tunnel_mesh(&["schema"])).unwrap();
    assert_eq!(printed, schema);
    // What an editor shows: every field says what it means, and no default is one that a file can't say.
    fn look(path: &str, part: &Value) {
        for (name, field) in part["properties"].as_object().into_iter().flatten() {
            assert!(field["description"].is_string(), "{path}/{name} says nothing");
            assert!(!field["default"].is_object() && field.get("default") != Some(&Value::Null), "{path}/{name}");
        }
        match part {
            Value::Object(parts) => parts.iter().for_each(|(name, part)| look(&format!("{path}/{name}"), part)),
            Value::Array(parts) => parts.iter().for_each(|part| look(path, part)),
            _ => {}
        }
    }
    look("", &schema);
    assert_eq!(schema["definitions"]["TunnelDoc"]["properties"]["ttl"]["default"], 64);
}

#[test]
fn what_is_right_satisfies_the_schema_and_what_is_wrong_in_form_does_not() {
    let schema = jsonschema::options().should_validate_formats(true).build(&schema()).unwrap();
    let fits = |file: &SourceFile| documents(file).map(|all| all.iter().all(|d| schema.is_valid(d)));
    // What a schema can't see: YAML itself, a key given twice, and an empty file, which is no document at all.
    let beyond = ["TM0001", "TM0002", "TM0003", "TM0004", "TM0005", "TM0101", "TM0102"];
    let (mut right, mut wrong) = (0, 0);
    for files in folders("examples/topologies").into_iter().chain(folders("tests/cases")) {
        let parsed: Vec<_> = files.iter().map(parse).collect();
        let valid = diagnose(&parsed, None).is_empty();
        for (file, parsed) in files.iter().zip(&parsed) {
            let form: BTreeSet<&str> = parsed.diagnostics().iter().map(|d| d.code.as_str()).collect();
            if valid {
                assert_eq!(fits(file), Some(true), "{} is right", file.name);
                right += 1;
            } else if form.iter().any(|code| !beyond.contains(code)) {
                assert_eq!(fits(file), Some(false), "{} is wrong: {form:?}", file.name);
                wrong += 1;
            }
        }
    }
    assert!(right >= 8 && wrong >= 8, "{right} right, {wrong} wrong");
}

#[test]
fn every_command_has_a_manual_page_that_formats_without_complaint() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(tunnel_mesh(&["man", "--dir", directory.path().to_str().unwrap()]), "");
    let pages: BTreeSet<String> =
        std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let help = tunnel_mesh(&["--help"]);
    let commands = help.lines().skip_while(|l| !l.starts_with("Commands:")).skip(1).take_while(|l| !l.is_empty());
    let commands = commands.filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    let mut wanted: BTreeSet<String> =
        commands.map(|l| format!("tunnel-mesh-{}.1", l.split_whitespace().next().unwrap())).collect();
    assert!(wanted.len() > 8, "{help}");
    wanted.insert("tunnel-mesh.1".to_owned());
    assert_eq!(pages, wanted);
    for page in &pages {
        let path = directory.path().join(page);
        let output = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-P-cbou"]).arg(&path).output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && complaints.is_empty(), "{page}: {complaints}");
        let text = String::from_utf8(output.stdout).unwrap();
        for section in ["NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "SEE ALSO"] {
            assert!(text.contains(section), "{page} has no {section}");
        }
        let command = page.trim_start_matches("tunnel-mesh").trim_start_matches('-').trim_end_matches(".1");
        let printed = if command.is_empty() { tunnel_mesh(&["man"]) } else { tunnel_mesh(&["man", command]) };
        assert_eq!(printed, std::fs::read_to_string(&path).unwrap(), "{page}");
    }
}

/// What bash completes that line to.
fn bash(script: &Path, line: &str) -> BTreeSet<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let ask = format!(
        "source {}; COMP_WORDS=({line}); [[ '{line}' != *' ' ]] || COMP_WORDS+=(''); COMP_CWORD={}; \
         read -ra how < <(complete -p tunnel-mesh); for i in \"${{!how[@]}}\"; do [ \"${{how[i]}}\" != -F ] || f=${{how[i+1]}}; done; \
         compopt() {{ :; }}; $f tunnel-mesh \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.len() - 1
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn shells_complete_commands_options_and_values() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("tunnel-mesh.bash");
    std::fs::write(&script, tunnel_mesh(&["completions", "bash"])).unwrap();
    let set = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(bash(&script, "tunnel-mesh va"), set(&["validate"]));
    assert_eq!(bash(&script, "tunnel-mesh plan --det"), set(&["--detailed-exitcode"]));
    assert_eq!(bash(&script, "tunnel-mesh validate --format "), set(&["text", "json", "short", "github"]));
}

/// Runs a shell without anybody's settings; it must succeed and say nothing beside.
fn shell(command: &mut Command, home: &Path) -> String {
    let output =
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("TERM", "dumb").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && err.is_empty(), "{command:?}: {}\n{err}{out}", output.status);
    out
}

#[test]
fn fish_completes_commands_options_and_values() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("tunnel-mesh.fish");
    std::fs::write(&script, tunnel_mesh(&["completions", "fish"])).unwrap();
    shell(Command::new("fish").arg("--no-execute").arg(&script), directory.path());
    let complete = |line: &str| -> BTreeSet<String> {
        let ask = format!("source {}; complete --do-complete '{line}'", script.display());
        let out = shell(Command::new("fish").args(["-c", &ask]), directory.path());
        out.lines().map(|l| l.split('\t').next().unwrap().to_owned()).collect()
    };
    let set = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(complete("tunnel-mesh va"), set(&["validate"]));
    assert_eq!(complete("tunnel-mesh plan --det"), set(&["--detailed-exitcode"]));
    assert_eq!(complete("tunnel-mesh validate --format "), set(&["text", "json", "short", "github"]));
}

#[test]
fn zsh_completes_commands_options_and_values() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("_tunnel-mesh");
    std::fs::write(&script, tunnel_mesh(&["completions", "zsh"])).unwrap();
    shell(Command::new("zsh").arg("-n").arg(&script), directory.path());
    // Types what there is and the tab key, and waits for the rest of the word.
    let ask = "zmodload zsh/zpty && zpty shell zsh -f -i && \
               zpty -w shell \"PROMPT=; fpath=($1 \\$fpath); autoload -Uz compinit && compinit -u -D && print re''ady\" && \
               zpty -r -m shell seen '*ready*' && zpty -w -n shell \"$2\"$'\\t' && zpty -r -m shell seen \"*$3*\"";
    for (typed, rest) in [
        ("tunnel-mesh va", "lidate"),
        ("tunnel-mesh plan --det", "ailed-exitcode"),
        ("tunnel-mesh validate --format gi", "thub"),
    ] {
        let mut zsh = Command::new("timeout");
        zsh.args(["120", "zsh", "-f", "-c", ask, "zsh"]).arg(directory.path()).args([typed, rest]);
        shell(&mut zsh, directory.path());
    }
}

#[test]
fn an_installation_has_all_of_it_and_the_unit_finds_its_binary() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("make")
        .args(["install", &format!("BIN={}", env!("CARGO_BIN_EXE_tunnel-mesh"))])
        .arg(format!("DESTDIR={}", directory.path().display()))
        .current_dir(root())
        .env_remove("MAKEFLAGS")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let usr = directory.path().join("usr");
    for file in [
        "bin/tunnel-mesh",
        "lib/systemd/system/tunnel-mesh.service",
        "lib/sysusers.d/tunnel-mesh.conf",
        "lib/tmpfiles.d/tunnel-mesh.conf",
        "share/man/man1/tunnel-mesh.1",
        "share/man/man1/tunnel-mesh-plan.1",
        "share/bash-completion/completions/tunnel-mesh",
        "share/zsh/vendor-completions/_tunnel-mesh",
        "share/fish/vendor_completions.d/tunnel-mesh.fish",
        "share/tunnel-mesh/tunnel-mesh.schema.json",
    ] {
        assert!(std::fs::metadata(usr.join(file)).is_ok_and(|m| m.len() > 0), "{file}");
    }
    let unit = std::fs::read_to_string(usr.join("lib/systemd/system/tunnel-mesh.service")).unwrap();
    assert!(unit.lines().any(|l| l.starts_with("ExecStart=/usr/bin/tunnel-mesh")), "{unit}");
}
