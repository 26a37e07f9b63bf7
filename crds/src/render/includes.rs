//! Which partials a block includes, read from its syntax tree.

use minijinja::machinery::ast::{Expr, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;

/// What a block or partial says about others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Includes {
    /// The names it includes, with the line of each.
    pub names: Vec<(String, usize)>,
    /// What it may not do, with the line of each.
    pub refused: Vec<(&'static str, usize)>,
}

/// Reads `source`. Errors: it does not parse.
pub(crate) fn read(source: &str) -> Result<Includes, minijinja::Error> {
    let mut found = Includes::default();
    let root = parse(source, "", SyntaxConfig::default())?;
    walk(std::slice::from_ref(&root), &mut found);
    Ok(found)
}

const NAME: &str =
    "the name of what is included must be written out, so that it can be known in advance";
const INHERIT: &str = "templates do not extend or import each other: use include";

fn walk(statements: &[Stmt<'_>], found: &mut Includes) {
    let line = |span: minijinja::machinery::Span| usize::from(span.start_line);
    for statement in statements {
        match statement {
            Stmt::Include(include) => match &include.name {
                Expr::Const(name) if name.value.as_str().is_some() => {
                    let name = name.value.as_str().unwrap_or_default().to_owned();
                    found.names.push((name, line(include.span())));
                }
                _ => found.refused.push((NAME, line(include.span()))),
            },
            Stmt::Import(import) => found.refused.push((INHERIT, line(import.span()))),
            Stmt::FromImport(import) => found.refused.push((INHERIT, line(import.span()))),
            Stmt::Extends(extends) => found.refused.push((INHERIT, line(extends.span()))),
            Stmt::Template(template) => walk(&template.children, found),
            Stmt::ForLoop(each) => {
                walk(&each.body, found);
                walk(&each.else_body, found);
            }
            Stmt::IfCond(condition) => {
                walk(&condition.true_body, found);
                walk(&condition.false_body, found);
            }
            Stmt::WithBlock(with) => walk(&with.body, found),
            Stmt::SetBlock(set) => walk(&set.body, found),
            Stmt::AutoEscape(escape) => walk(&escape.body, found),
            Stmt::FilterBlock(filter) => walk(&filter.body, found),
            Stmt::Block(block) => walk(&block.body, found),
            Stmt::Macro(one) => walk(&one.body, found),
            Stmt::CallBlock(call) => walk(&call.macro_decl.body, found),
            Stmt::EmitExpr(_)
            | Stmt::EmitRaw(_)
            | Stmt::Set(_)
            | Stmt::Continue(_)
            | Stmt::Break(_)
            | Stmt::Do(_) => {}
        }
    }
}
