//! Filters, tests and functions that a template calls and nothing provides, and variables that are no parameters: the
//! engine itself finds them only when it gets there, which without a sample is in front of a recipient.

use std::collections::HashSet;

use minijinja::machinery::{Instruction, Instructions, get_compiled_template};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::names;
use super::parameters::RECIPIENT;

/// What the engine provides without a name in its environment.
const BUILT_IN: [&str; 3] = ["super", "loop", "caller"];

/// The filters that take the name of another filter or of a test: which of their arguments, from 0, and of what.
const BY_NAME: [(&str, usize, Called); 5] = [
    ("map", 0, Called::Filter),
    ("select", 0, Called::Test),
    ("reject", 0, Called::Test),
    ("selectattr", 1, Called::Test),
    ("rejectattr", 1, Called::Test),
];

/// What kind of thing is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Called {
    Filter,
    Test,
    Function,
}

impl Called {
    const fn noun(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Test => "test",
            Self::Function => "function",
        }
    }
}

/// Something that is called and not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    /// The engine's name of the block or partial.
    pub template: String,
    /// The line, from 1.
    pub line: usize,
    /// What it is, as a sentence.
    pub message: String,
}

/// Everything that the templates of `environment` call and nothing provides.
///
/// A function counts as known if any of the templates assigns its name, whichever: what is included sees the macros of
/// what includes it.
pub(super) fn unknown(environment: &Environment<'_>) -> Vec<Unknown> {
    let assigned = assigned(environment);
    let mut found = Vec::new();
    for (name, template) in environment.templates() {
        let compiled = get_compiled_template(&template);
        for part in std::iter::once(&compiled.instructions).chain(compiled.blocks.values()) {
            for (index, instruction) in instructions(part) {
                let called = call(part, index, instruction);
                let missing = called.into_iter().flatten().filter(|(called, name)| {
                    let is_assigned = *called == Called::Function && assigned.contains(*name);
                    !is_assigned && !is_known(environment, *called, name)
                });
                found.extend(missing.map(|(called, called_name)| Unknown {
                    template: name.to_owned(),
                    line: part.get_line(index).unwrap_or(1),
                    message: format!("there is no {} {called_name:?}", called.noun()),
                }));
            }
        }
    }
    found
}

/// Every variable that the blocks read, and the partials in `included`, that is none of `parameters` and that nothing
/// assigns.
///
/// As with functions, a name counts as assigned if any of the templates assigns it, whichever.
pub(super) fn undeclared(
    environment: &Environment<'_>,
    parameters: &Map<String, Value>,
    included: &HashSet<String>,
) -> Vec<Unknown> {
    let assigned = assigned(environment);
    let state = environment.empty_state();
    let mut found = Vec::new();
    for (name, template) in environment.templates() {
        if names::partial(name).is_some_and(|full| !included.contains(full)) {
            continue;
        }
        let compiled = get_compiled_template(&template);
        for part in std::iter::once(&compiled.instructions).chain(compiled.blocks.values()) {
            for (index, instruction) in instructions(part) {
                let Instruction::Lookup(variable) = instruction else {
                    continue;
                };
                let is_known = *variable == RECIPIENT
                    || parameters.contains_key(*variable)
                    || assigned.contains(*variable)
                    || state.lookup(variable).is_some();
                if !is_known {
                    found.push(Unknown {
                        template: name.to_owned(),
                        line: part.get_line(index).unwrap_or(1),
                        message: format!(
                            "{variable:?} is no parameter: declare it in parameters.properties (or set \
                             parameters.additionalProperties: true, if senders may add to them)"
                        ),
                    });
                }
            }
        }
    }
    found
}

/// The names that any template assigns, and those that the engine does.
fn assigned(environment: &Environment<'_>) -> HashSet<String> {
    let mut assigned: HashSet<String> = BUILT_IN.map(str::to_owned).into();
    for (_, template) in environment.templates() {
        let compiled = get_compiled_template(&template);
        for part in std::iter::once(&compiled.instructions).chain(compiled.blocks.values()) {
            assigned.extend(
                instructions(part).filter_map(|(_, instruction)| match instruction {
                    Instruction::StoreLocal(name) => Some((*name).to_owned()),
                    _ => None,
                }),
            );
        }
    }
    assigned
}

fn instructions<'a, 'source>(
    part: &'a Instructions<'source>,
) -> impl Iterator<Item = (u32, &'a Instruction<'source>)> {
    (0..).map_while(|index| Some((index, part.get(index)?)))
}

/// What an instruction calls, and what that calls by a name written out as its argument.
fn call<'a>(
    part: &'a Instructions<'_>,
    index: u32,
    instruction: &'a Instruction<'_>,
) -> [Option<(Called, &'a str)>; 2] {
    match instruction {
        Instruction::ApplyFilter(name, count, _) => [
            Some((Called::Filter, *name)),
            count.and_then(|count| argument(part, index, name, count)),
        ],
        Instruction::PerformTest(name, ..) => [Some((Called::Test, *name)), None],
        Instruction::CallFunction(name, _) => [Some((Called::Function, *name)), None],
        _ => [None, None],
    }
}

/// The name that a filter such as `map` is given, if its `count` arguments (with the value it works on) are constants.
fn argument<'a>(
    part: &'a Instructions<'_>,
    index: u32,
    filter: &str,
    count: u16,
) -> Option<(Called, &'a str)> {
    let (_, position, called) = BY_NAME.iter().find(|(name, ..)| *name == filter)?;
    let given = u32::from(count).checked_sub(1)?;
    let first = index.checked_sub(given)?;
    let mut constants = (first..index).map(|index| match part.get(index) {
        Some(Instruction::LoadConst(value)) => Some(value),
        _ => None,
    });
    let value = constants
        .clone()
        .all(|c| c.is_some())
        .then(|| constants.nth(*position))???;
    Some((*called, value.as_str()?))
}

fn is_known(environment: &Environment<'_>, called: Called, name: &str) -> bool {
    // Called with nothing, they complain of something else, if they are there.
    let mut state = environment.empty_state();
    let name: String = name.split_whitespace().collect();
    match called {
        Called::Filter => state
            .apply_filter(&name, &[])
            .is_err_and(|error| error.kind() == ErrorKind::UnknownFilter)
            .then_some(()),
        Called::Test => state
            .perform_test(&name, &[])
            .is_err_and(|error| error.kind() == ErrorKind::UnknownTest)
            .then_some(()),
        Called::Function => state.lookup(&name).is_none().then_some(()),
    }
    .is_none()
}
