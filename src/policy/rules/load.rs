//! From text to rules. The Starlark dialect is Codex's: the extended one with f-strings and without `load`.
//!
//! A file is only a program that makes calls: they are noted as data, with their places, and read by [`super::read`] after
//! the file has run. So one run shows all faults; a file that stops (a syntax error, a missing argument) adds its own, and
//! the next is read all the same. Any fault at all fails the load.

#![allow(
    clippy::too_many_arguments,
    reason = "the words of a rule are the arguments of its function"
)]

use std::cell::RefCell;
use std::sync::LazyLock;

use serde_json::json;
use starlark::environment::{FrozenModule, Globals, GlobalsBuilder, Module};
use starlark::eval::{Evaluator, FileLoader};
use starlark::starlark_module;
use starlark::syntax::{AstModule, Dialect};
use starlark::values::Value;
use starlark::values::none::NoneType;

use super::read::Reading;
use super::{Fault, RuleSet, RuleText, RulesError};

/// A file is written by hand; one that is longer is something else.
const FILE_LIMIT: usize = 1 << 20;
/// Brackets deeper than this would exhaust the stack of the Starlark reader.
const BRACKET_LIMIT: u32 = 100;
const CALL_LIMIT: usize = 100_000;
/// Starlark has no endless loops, but long ones.
const TICK_LIMIT: u64 = 20_000_000;

/// Made once and only where there are files of rules: it takes longer than all else of a task's admission.
static GLOBALS: LazyLock<Globals> = LazyLock::new(|| GlobalsBuilder::standard().with(builtins).build());

pub(super) fn load(texts: &[RuleText]) -> Result<RuleSet, RulesError> {
    let mut reading = Reading::default();
    for text in texts {
        let calls = RefCell::new(Vec::new());
        let ran = run(text, &GLOBALS, &calls);
        for call in calls.into_inner() {
            reading.call(&text.name, &call);
        }
        if let Err(fault) = ran {
            reading.faults.push(fault);
        }
    }
    reading.finish()
}

fn run(text: &RuleText, globals: &Globals, calls: &RefCell<Vec<String>>) -> Result<(), Fault> {
    let fault = |message: &str| Fault {
        file: text.name.clone(),
        line: 0,
        column: 0,
        text: message.to_owned(),
    };
    if text.text.len() > FILE_LIMIT {
        return Err(fault("a file of rules must be shorter than 1 MiB"));
    }
    let mut depth = 0_u32;
    for byte in text.text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > BRACKET_LIMIT {
            return Err(fault("brackets are nested too deeply"));
        }
    }
    let dialect = Dialect {
        enable_f_strings: true,
        ..Dialect::Extended
    };
    let ast =
        AstModule::parse(&text.name, text.text.clone(), &dialect).map_err(|error| fault_of(&text.name, &error))?;
    Module::with_temp_heap(|module| {
        let mut evaluator = Evaluator::new(&module);
        evaluator.extra = Some(calls);
        evaluator.set_loader(&NoImports);
        evaluator.set_print_handler(&Silent);
        evaluator
            .set_max_callstack_size(100)
            .and_then(|()| evaluator.set_max_tick_count(TICK_LIMIT))
            .map_err(|error| fault(&error.to_string()))?;
        match evaluator.eval_module(ast, globals) {
            Ok(_) => Ok(()),
            Err(error) => Err(fault_of(&text.name, &error)),
        }
    })
}

/// Files of rules stand alone: what one says must not depend on a file that nobody named.
struct NoImports;

impl FileLoader for NoImports {
    fn load(&self, path: &str) -> starlark::Result<FrozenModule> {
        Err(starlark::Error::new_other(std::io::Error::other(format!(
            "load() is not available in rules (\"{path}\")"
        ))))
    }
}

/// `print` in a file says nothing: the loader may run where nobody reads.
struct Silent;

impl starlark::PrintHandler for Silent {
    fn println(&self, _text: &str) -> starlark::Result<()> {
        Ok(())
    }
}

/// A Starlark error as a fault, with its innermost place.
fn fault_of(file: &str, error: &starlark::Error) -> Fault {
    let (line, column) = error.span().map_or((0, 0), |span| {
        let begin = span.resolve_span().begin;
        (number(begin.line) + 1, number(begin.column) + 1)
    });
    Fault {
        file: file.to_owned(),
        line,
        column,
        text: error.without_diagnostic().to_string(),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX - 1)
}

/// Notes one call, with the place that it was made from.
fn note(evaluator: &Evaluator, call: &str, arguments: &[(&str, Option<Value>)]) -> anyhow::Result<NoneType> {
    let calls = evaluator
        .extra
        .and_then(|extra| extra.downcast_ref::<RefCell<Vec<String>>>())
        .expect("the loader sets it before it evaluates");
    if calls.borrow().len() >= CALL_LIMIT {
        anyhow::bail!("more than {CALL_LIMIT} rules");
    }
    let mut given = serde_json::Map::new();
    for (name, value) in arguments {
        if let Some(value) = value.filter(|value| !value.is_none()) {
            given.insert((*name).to_owned(), value.to_json_value()?);
        }
    }
    let begin = evaluator
        .call_stack_top_location()
        .map(|span| span.resolve_span().begin);
    let note = json!({
        "call": call,
        "line": begin.map_or(0, |begin| number(begin.line) + 1),
        "column": begin.map_or(0, |begin| number(begin.column) + 1),
        "given": given,
    });
    calls.borrow_mut().push(note.to_string());
    Ok(NoneType)
}

#[starlark_module]
fn builtins(builder: &mut GlobalsBuilder) {
    fn prefix_rule<'v>(
        pattern: Option<Value<'v>>,
        decision: Option<Value<'v>>,
        r#match: Option<Value<'v>>,
        not_match: Option<Value<'v>>,
        justification: Option<Value<'v>>,
        canonical_matching: Option<Value<'v>>,
        #[starlark(require = named)] id: Option<Value<'v>>,
        #[starlark(require = named)] reviewer: Option<Value<'v>>,
        #[starlark(require = named)] options: Option<Value<'v>>,
        #[starlark(require = named)] arguments: Option<Value<'v>>,
        #[starlark(require = named)] cwd: Option<Value<'v>>,
        #[starlark(require = named)] redirects: Option<Value<'v>>,
        #[starlark(require = named)] env: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> anyhow::Result<NoneType> {
        let given = [
            ("pattern", pattern),
            ("decision", decision),
            ("match", r#match),
            ("not_match", not_match),
            ("justification", justification),
            ("canonical_matching", canonical_matching),
            ("id", id),
            ("reviewer", reviewer),
            ("options", options),
            ("arguments", arguments),
            ("cwd", cwd),
            ("redirects", redirects),
            ("env", env),
        ];
        note(eval, "prefix_rule", &given)
    }

    fn network_rule<'v>(
        host: Value<'v>,
        protocol: Value<'v>,
        decision: Value<'v>,
        justification: Option<Value<'v>>,
        #[starlark(require = named)] id: Option<Value<'v>>,
        #[starlark(require = named)] reviewer: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> anyhow::Result<NoneType> {
        let given = [
            ("host", Some(host)),
            ("protocol", Some(protocol)),
            ("decision", Some(decision)),
            ("justification", justification),
            ("id", id),
            ("reviewer", reviewer),
        ];
        note(eval, "network_rule", &given)
    }

    fn host_executable<'v>(
        name: Value<'v>,
        paths: Value<'v>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> anyhow::Result<NoneType> {
        note(eval, "host_executable", &[("name", Some(name)), ("paths", Some(paths))])
    }
}
