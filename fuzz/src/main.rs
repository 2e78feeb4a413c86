//! Compares the shell splitter with real bash, on scripts made by mutation.
//!
//! ```text
//! cargo run --manifest-path fuzz/Cargo.toml -- SECONDS [SEED] [FILE of {"command"} lines]...
//! ```
//!
//! Each script is read by `policy::shell`. Where that claims to know what runs, bash runs the script in a bubblewrap sandbox
//! of nothing but bash and stub programs, which note their argv. A noted argv that was not listed is a hole, and is printed.
//! Needs `bwrap` and bash; nothing outside of a temporary folder is touched.

#[path = "../../src/policy/shell/mod.rs"]
#[allow(dead_code, unused_imports)]
mod shell;

mod mutate;
mod truth;

use std::time::{Duration, Instant};

use shell::{Fields, Understanding, Word};

fn main() {
    if truth::is_stub() {
        return truth::note();
    }
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args
        .next()
        .map_or(60, |text| text.parse().expect("SECONDS is a number"));
    let seed: u64 = args
        .next()
        .map_or_else(|| fastrand::u64(..), |text| text.parse().expect("SEED is a number"));
    let files: Vec<String> = args.collect();
    let seeds = mutate::seeds(&files);
    let stage = truth::Stage::new();
    let known = vec![vec![b"rm".to_vec(), b"x".to_vec()]];
    assert_eq!(
        stage.run(truth::SHELLS[0], "rm x"),
        known,
        "the sandbox notes what bash runs"
    );
    assert_eq!(
        stage.run_carrier(&["env", "rm", "x"].map(str::to_owned)),
        known,
        "and what others run"
    );
    println!("{} seeds, random seed {seed}", seeds.len());
    let mut random = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut tried, mut run, mut holes) = (0_u64, 0_u64, 0_u64);
    while Instant::now() < end {
        tried += 1;
        if random.u8(..4) == 0 {
            let argv = mutate::carrier(&mut random);
            let found = shell::understand(&argv);
            if found.opaque.is_none() {
                run += 1;
                holes += report(&found, &format!("{argv:?}"), stage.run_carrier(&argv));
            }
            continue;
        }
        let script = if (tried as usize) <= seeds.len() {
            seeds[tried as usize - 1].clone()
        } else {
            mutate::mutant(&seeds, &mut random)
        };
        if script.contains('\0') {
            continue;
        }
        // Half of the scripts are bash's, the others any sh's.
        let program = truth::SHELLS[[0, 0, 1, 2][random.usize(..4)]];
        let found = match program {
            "/bash.real" => shell::understand_script(&script),
            _ => shell::understand(&["sh".to_owned(), "-c".to_owned(), "--".to_owned(), script.clone()]),
        };
        if found.opaque.is_some() {
            continue;
        }
        run += 1;
        holes += report(&found, &format!("{program} {script:?}"), stage.run(program, &script));
    }
    println!("{tried} scripts, {run} understood and run, {holes} holes");
    // The exit below runs no destructors.
    drop(stage);
    std::process::exit(i32::from(holes > 0));
}

/// Prints what ran without being listed, and counts it.
fn report(found: &Understanding, what: &str, runs: Vec<Vec<Vec<u8>>>) -> u64 {
    let mut holes = 0;
    for real in runs {
        if found.commands.iter().any(|command| covers(&command.argv, &real)) {
            continue;
        }
        holes += 1;
        let words: Vec<_> = real.iter().map(|word| String::from_utf8_lossy(word)).collect();
        println!("HOLE {what}\n  ran    {words:?}");
        for command in &found.commands {
            let words: Vec<&str> = command.argv.iter().map(|word| word.text.as_str()).collect();
            println!("  listed {words:?}");
        }
    }
    holes
}

/// Whether a listed command may have become this argv.
fn covers(listed: &[Word], real: &[Vec<u8>]) -> bool {
    let Some((word, rest)) = listed.split_first() else {
        return real.is_empty();
    };
    let after = |taken: usize| covers(rest, &real[taken..]);
    match &word.unknown {
        None => real.first().is_some_and(|first| first == word.text.as_bytes()) && after(1),
        Some(unknown) => {
            let starts = |value: &Vec<u8>| value.starts_with(unknown.prefix.as_bytes());
            match unknown.fields {
                Fields::One => {
                    real.first()
                        .is_some_and(|value| starts(value) && value.ends_with(unknown.suffix.as_bytes()))
                        && after(1)
                }
                Fields::Some => real.first().is_some_and(starts) && (1..=real.len()).any(after),
                Fields::Any => (0..=real.len()).any(after),
            }
        }
    }
}
