//! Runs programs to their end, and says what they said when they fail.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// What the command wrote to its standard output; an error holds what it wrote to the other one.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    text(command, output)
}

/// As [`output`], with `input` on the command's standard input.
pub(crate) fn output_given(command: &mut Command, input: &str) -> Result<String> {
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = child.and_then(|mut child| {
        // kubectl reads all of it and answers in a few lines, so writing before reading cannot block.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    });
    text(command, output)
}

fn text(command: &Command, output: std::io::Result<Output>) -> Result<String> {
    let output =
        output.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            shown(command),
            output.status,
            tail(&String::from_utf8_lossy(&output.stderr), 15)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it, cut where it gets long.
fn shown(command: &Command) -> String {
    let mut line = String::from("`");
    let program = command.get_program();
    let name = std::path::Path::new(program).file_name().unwrap_or(program);
    let _ = write!(line, "{}", name.display());
    for argument in command.get_args() {
        if line.len() > 300 {
            line.push_str(" …");
            break;
        }
        let _ = write!(line, " {}", OsStr::display(argument));
    }
    line.push('`');
    line
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
