//! Makes the pictures in `docs/pictures` from real runs. Only `lifecycle.svg` was drawn by hand.

mod film;
mod terminal;

use crate::context::Context;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use terminal::Terminal;
use xshell::cmd;

const FOLDER: &str = "docs/pictures";
/// The width and height of the recorded terminal, in characters.
const COLUMNS: usize = 92;
const ROWS: usize = 7;
/// The number of notes that the service still writes while it drains.
const NOTES: usize = 8;

pub(super) fn pictures(context: &Context) -> Result<()> {
    record_drain(context)?;
    photograph_dashboard(context)
}

/// Takes screenshots of the host's dashboard in the light and the dark colour scheme.
fn photograph_dashboard(context: &Context) -> Result<()> {
    if !context.browser() {
        return Ok(());
    }
    let sh = &context.sh;
    cmd!(sh, "cargo build --quiet -p notes-tokio").run()?;
    cmd!(sh, "cargo build --quiet -p background-tasks-host --example dashboard --features dashboard,http").run()?;
    let (notes, shop) = (context.built("debug/notes-tokio"), context.built("debug/examples/dashboard"));
    let test = cmd!(sh, "timeout 300 node --test --test-name-pattern=screenshot host/tests/dashboard.mjs");
    Ok(test.env("NOTES", notes).env("SHOP", shop).env("SCREENSHOTS", sh.current_dir().join(FOLDER)).run()?)
}

/// Records a terminal in which a service drains after Ctrl-C. Writes the recording as an animated SVG.
fn record_drain(context: &Context) -> Result<()> {
    let sh = &context.sh;
    if !context.program("script", "bsdutils") || !context.program("mkfifo", "coreutils") {
        return Ok(());
    }
    cmd!(sh, "cargo build --quiet -p notes-tokio").run()?;
    let folder = sh.create_temp_dir()?;
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("stalls"))?;
    fs::copy(context.built("debug/notes-tokio"), path("notes-tokio"))?;
    for note in 1..=NOTES {
        let pipe = pipe(folder.path(), note);
        cmd!(sh, "mkfifo {pipe}").quiet().run()?;
    }

    // `script` runs the shell in a terminal, and writes the shell's output and the time of each part to two files.
    let shell =
        format!("stty cols {COLUMNS} rows {ROWS}; PATH=.:$PATH PS1='$ ' TERM=xterm exec bash --norc --noprofile --noediting");
    let mut script = Command::new("script")
        .args(["--quiet", "--flush", "--log-out", "output", "--log-timing", "timing", "--command", &shell])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let keyboard = script.stdin.take().context("no stdin")?;
    let played = play(keyboard, folder.path());
    if played.is_err() {
        // The end of `script` closes the terminal, which ends the shell and the service.
        script.kill()?;
    }
    script.wait()?;
    played?;

    let frames = replay(&fs::read(path("output"))?, &fs::read_to_string(path("timing"))?)?;
    let caption = "A terminal: a service receives Ctrl-C, shows the progress of the drain, and exits with 0";
    Ok(sh.write_file(Path::new(FOLDER).join("drain.svg"), film::svg(&frames, COLUMNS, ROWS, caption))?)
}

/// Types the commands of the recording into the shell. Lets the service finish one note after another.
fn play(mut keyboard: ChildStdin, folder: &Path) -> Result<()> {
    let mut type_text = |text: &str| {
        text.bytes().try_for_each(|key| {
            sleep(Duration::from_millis(45));
            keyboard.write_all(&[key])
        })
    };
    let output = || fs::read_to_string(folder.join("output"));
    sleep(Duration::from_millis(900));
    type_text("notes-tokio --stall stalls\n")?;
    let mut attempts = 0;
    while !output()?.contains("listening on http://127.0.0.1:7878") {
        ensure!(attempts < 100, "the service did not start: {}", output()?);
        attempts += 1;
        sleep(Duration::from_millis(100));
    }
    for note in 1..=NOTES {
        let mut client = TcpStream::connect("127.0.0.1:7878")?;
        let request =
            format!("PUT /notes/note-{note} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnote");
        client.write_all(request.as_bytes())?;
        let mut response = String::new();
        client.read_to_string(&mut response)?;
        ensure!(response.starts_with("HTTP/1.1 202 "), "a note was not accepted: {response}");
    }
    sleep(Duration::from_millis(700));
    type_text("\u{3}")?;
    for note in 1..=NOTES {
        sleep(Duration::from_millis(if note % 3 == 0 { 800 } else { 350 }));
        fs::write(pipe(folder, note), "")?;
    }
    sleep(Duration::from_millis(600));
    type_text("echo $?\n")?;
    sleep(Duration::from_millis(500));
    Ok(type_text("exit\n")?)
}

/// Returns the path of a named pipe. The service finishes writing this note only after somebody writes to the pipe.
fn pipe(folder: &Path, note: usize) -> PathBuf {
    folder.join(format!("stalls/note-{note}"))
}

/// Returns the screens of a recording with their times in seconds. The last screen shows the exit code of the service and the next
/// prompt.
fn replay(output: &[u8], timing: &str) -> Result<Vec<film::Frame>> {
    // The first line of the log is from `script`, not from the shell.
    let start = output.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut rest = &output[start..];
    let mut screen = Terminal::new(COLUMNS, ROWS);
    let mut frames: Vec<film::Frame> = Vec::new();
    let mut at = 0.0;
    for entry in timing.lines() {
        let (delay, length) = entry.split_once(' ').context("a time without a length")?;
        at += delay.parse::<f64>()?;
        let bytes;
        (bytes, rest) = rest.split_at(rest.len().min(length.parse()?));
        screen.write(&String::from_utf8_lossy(bytes));
        let lines = screen.lines();
        if frames.last().is_none_or(|last| last.lines != lines) {
            let is_end = lines.iter().filter(|line| !line.is_empty()).rev().map(String::as_str).take(2).eq(["$", "0"]);
            frames.push(film::Frame { at, lines });
            if is_end {
                return Ok(frames);
            }
        }
    }
    bail!("the service did not exit with 0: {:?}", screen.lines())
}

#[cfg(test)]
mod tests {
    #[test]
    fn lifecycle_shows_every_outcome() {
        let picture = include_str!("../../../docs/pictures/lifecycle.svg");
        let summary = include_str!("../../../src/report/summary.rs");
        let outcomes: Vec<_> =
            summary.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.strip_suffix(": u64,")).collect();
        assert_eq!(outcomes.len(), 6, "{outcomes:?}");
        for outcome in outcomes {
            assert!(picture.contains(&format!(">{outcome}<")), "{outcome}");
        }
    }
}
