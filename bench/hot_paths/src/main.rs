//! `hot-paths`: names the paths; `hot-paths NAME TIMES`: runs one, for Callgrind to count
//! (`scripts/instructions.py`).
#![allow(clippy::print_stdout, reason = "the list is the result")]

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => {
            for (name, prepare) in millrace_hot_paths::ALL {
                let path = prepare();
                println!("{name}\t{}\t{}", path.items, path.what);
            }
            ExitCode::SUCCESS
        }
        [name, times] => {
            let known = millrace_hot_paths::ALL.iter().find(|(known, _)| known == name);
            let (Some((_, prepare)), Ok(times)) = (known, times.parse()) else {
                eprintln!("{name} {times}: no such path, or no number; hot-paths alone lists them");
                return ExitCode::from(2);
            };
            prepare().run(times);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: hot-paths [NAME TIMES]");
            ExitCode::from(2)
        }
    }
}
