//! However files get into the topology directory, and whatever becomes of the directory: what they say is soon in force,
//! and what they don't say any more goes only once that is certain.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "files/checkout.rs"]
mod checkout;
#[path = "files/limits.rs"]
mod limits;
#[path = "files/site.rs"]
mod site;
mod world;

use site::*;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use world::*;

/// Writes a text into a file in its own way.
type Saver = fn(&Path, &str);

/// vim: a backup by rename, the new file under the old name, the backup deleted; a swap file beside it all the time.
fn vim(file: &Path, text: &str) {
    let (directory, name) = (file.parent().unwrap(), file.file_name().unwrap().to_str().unwrap());
    let (swap, backup) = (directory.join(format!(".{name}.swp")), directory.join(format!("{name}~")));
    fs::write(&swap, "swap").unwrap();
    fs::write(directory.join("4913"), "").unwrap();
    fs::remove_file(directory.join("4913")).unwrap();
    fs::rename(file, &backup).unwrap();
    let mut new = fs::File::create(file).unwrap();
    new.write_all(text.as_bytes()).unwrap();
    new.sync_all().unwrap();
    fs::remove_file(backup).unwrap();
    fs::remove_file(swap).unwrap();
}

/// nano, and editors over the network: in place, piece by piece.
fn in_place(file: &Path, text: &str) {
    let mut new = fs::File::create(file).unwrap();
    for piece in text.as_bytes().chunks(40) {
        new.write_all(piece).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// gedit, kate and most others: another file, renamed.
fn by_rename(file: &Path, text: &str) {
    let temporary = file.with_file_name(".goutputstream-1X2Y");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, file).unwrap();
}

/// Ansible's `atomic_move`: written elsewhere, copied beside the target, owner and mode set, renamed.
fn ansible(file: &Path, text: &str) {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), text).unwrap();
    let beside = file.with_file_name(format!(".ansible_tmpq1w2e3{}", file.file_name().unwrap().to_str().unwrap()));
    fs::copy(elsewhere.path(), &beside).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&beside, mode).unwrap();
    std::os::unix::fs::chown(&beside, Some(0), Some(0)).unwrap();
    fs::rename(beside, file).unwrap();
}

#[test]
fn editors_and_ansible_save_files() {
    let site = Site::new();
    let _daemon = site.started(&[("a.yaml", whole(0..3)), ("b.yaml", text(10..12))]);
    let file = site.host.topology().join("a.yaml");
    let savers: [(&str, Saver); 4] =
        [("vim", vim), ("in place", in_place), ("by rename", by_rename), ("ansible", ansible)];
    for (name, save) in savers {
        // Until the end, what is in both versions and in the other file is in force.
        site.never_without(name, [0, 1, 10, 11], || {
            save(&file, &whole(0..6));
            site.follows(&format!("{name} adds"), [0, 1, 2, 10, 11], [0, 1, 2, 3, 4, 5, 10, 11]);
            save(&file, &whole([0, 1, 2, 7]));
            site.follows(&format!("{name} changes"), [0, 1, 2, 3, 4, 5, 10, 11], [0, 1, 2, 7, 10, 11]);
            save(&file, &whole(0..3));
            site.follows(&format!("{name} removes"), [0, 1, 2, 7, 10, 11], [0, 1, 2, 10, 11]);
        });
    }
    // A new file, and one that goes.
    ansible(&site.host.topology().join("c.yml"), &text([20]));
    site.follows("a new file", [0, 1, 2, 10, 11], [0, 1, 2, 10, 11, 20]);
    fs::remove_file(site.host.topology().join("b.yaml")).unwrap();
    site.follows("a file goes", [0, 1, 2, 10, 11, 20], [0, 1, 2, 20]);
}

/// Makes the next version of a ConfigMap volume, as the kubelet's atomic writer does.
fn configmap(volume: &Path, version: u32, files: &[(&str, String)]) {
    let name = format!("..2026_01_0{version}");
    fill(&volume.join(&name), files);
    let data = volume.join("..data");
    let old = fs::read_link(&data).ok();
    symlink(&name, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), &data).unwrap();
    for (file, _) in files {
        let link = volume.join(file);
        if !link.exists() {
            symlink(Path::new("..data").join(file), link).unwrap();
        }
    }
    for entry in fs::read_dir(volume).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with("..") && !files.iter().any(|(f, _)| *f == name) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old)).unwrap();
    }
}

#[test]
fn a_configmap_is_swapped() {
    let site = Site::new();
    let volume = site.host.topology().to_owned();
    configmap(&volume, 1, &[("a.yaml", whole(0..2)), ("b.yaml", text(10..12))]);
    let _daemon = site.host.daemon();
    site.becomes("at first", [0, 1, 10, 11]);
    site.never_without("swaps", [0, 10], || {
        configmap(&volume, 2, &[("a.yaml", whole(0..4)), ("b.yaml", text(10..12))]);
        site.follows("swap adds", [0, 1, 10, 11], [0, 1, 2, 3, 10, 11]);
        configmap(&volume, 3, &[("a.yaml", whole([0])), ("b.yaml", text(10..12)), ("c.yaml", text([20]))]);
        site.follows("swap changes", [0, 1, 2, 3, 10, 11], [0, 10, 11, 20]);
        configmap(&volume, 4, &[("a.yaml", whole([0, 10, 30]))]);
        site.follows("swap drops files", [0, 10, 11, 20], [0, 10, 30]);
        configmap(&volume, 5, &[("a.yaml", whole([0, 10, 31]))]);
        site.follows("swap again", [0, 10, 30], [0, 10, 31]);
    });
}

/// A bind mount, taken away on drop.
struct Bind(PathBuf);

impl Bind {
    fn over(target: &Path, source: &Path) -> Self {
        let status = Command::new("mount").arg("--bind").args([source, target]).status().unwrap();
        assert!(status.success());
        Self(target.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn the_directory_itself_is_replaced() {
    let site = Site::new();
    let directory = site.host.topology().to_owned();
    let aside = directory.with_file_name("aside");
    let mut now: Vec<u32> = vec![0, 1, 2];
    let daemon = site.started(&[("a.yaml", whole(now.clone()))]);
    let mut next = 10;
    // After each replacement, what the new one says is in force, and a change within it is seen, too.
    let mut check = |what: &str, path: &Path, after: Vec<u32>| {
        site.follows(what, now.clone(), after.clone());
        next += 1;
        fs::write(path.join(format!("n{next}.yaml")), text([next])).unwrap();
        let grown: Vec<u32> = after.iter().copied().chain([next]).collect();
        site.follows(&format!("{what}, then a file"), after.clone(), grown.clone());
        fs::remove_file(path.join(format!("n{next}.yaml"))).unwrap();
        site.follows(&format!("{what}, then without it"), grown, after.clone());
        now = after;
    };
    site.never_without("all", [0, 1], || {
        fs::remove_dir_all(&directory).unwrap();
        fill(&directory, &[("a.yaml", whole([0, 1, 3]))]);
        check("deleted and recreated at once", &directory, vec![0, 1, 3]);

        fs::remove_dir_all(&directory).unwrap();
        eventually("it is missed", || site.config_error().contains("make the directory"));
        fill(&directory, &[("a.yaml", whole([0, 1, 4]))]);
        check("deleted and recreated", &directory, vec![0, 1, 4]);

        fs::rename(&directory, &aside).unwrap();
        eventually("it is missed", || site.config_error().contains("make the directory"));
        // What is written there now isn't ours.
        fs::write(aside.join("b.yaml"), text([40])).unwrap();
        fill(&directory, &[("a.yaml", whole([0, 1, 5]))]);
        check("renamed away", &directory, vec![0, 1, 5]);
        fs::remove_dir_all(&directory).unwrap();
        fs::remove_file(aside.join("b.yaml")).unwrap();
        fs::rename(&aside, &directory).unwrap();
        check("and back", &directory, vec![0, 1, 4]);

        // A symlink, and where it leads is swapped.
        let real = directory.with_file_name("real");
        fill(&real, &[("a.yaml", whole([0, 1, 6]))]);
        fs::rename(&directory, &aside).unwrap();
        symlink(&real, &directory).unwrap();
        check("replaced by a symlink", &real, vec![0, 1, 6]);
        fill(&aside, &[("a.yaml", whole([0, 1, 7]))]);
        symlink(&aside, directory.with_file_name("link")).unwrap();
        fs::rename(directory.with_file_name("link"), &directory).unwrap();
        check("another symlink", &aside, vec![0, 1, 7]);
        fs::remove_file(&directory).unwrap();
        fill(&directory, &[("a.yaml", whole([0, 1, 8]))]);
        check("a directory again", &directory, vec![0, 1, 8]);

        let over = directory.with_file_name("over");
        fill(&over, &[("a.yaml", whole([0, 1, 9]))]);
        let bind = Bind::over(&directory, &over);
        check("bind-mounted over", &over, vec![0, 1, 9]);
        drop(bind);
        check("and not any more", &directory, vec![0, 1, 8]);
    });
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn git_checks_two_thousand_files_out() {
    checkout::git();
}

#[test]
fn a_slow_checkout_removes_nothing_that_its_end_state_has() {
    checkout::slow();
}

#[test]
fn the_queue_of_inotify_overflows() {
    limits::overflow();
}

#[test]
fn without_inotify_instances_it_polls_and_says_so() {
    limits::instances();
}

#[test]
fn without_inotify_watches_it_polls_and_says_so() {
    limits::watches();
}
