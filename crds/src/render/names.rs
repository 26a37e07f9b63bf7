//! What blocks and partials are called inside the template engine.
//!
//! A name is `escape:template/partial` or `escape:template:pointer`, where `escape` is `html` or `text` and `pointer`
//! the JSON Pointer of a block. So what a partial prints is escaped as the block that includes it asks for, and a
//! partial's own includes are those of the template it belongs to.

use minijinja::AutoEscape;

/// The name of a block.
pub(super) fn block_name(template: &str, pointer: &str) -> String {
    let escape = if pointer.ends_with("/html") {
        "html"
    } else {
        "text"
    };
    format!("{escape}:{template}:{pointer}")
}

/// Both names of a partial, given its full name.
pub(super) fn partial_names(full: &str) -> [String; 2] {
    [format!("html:{full}"), format!("text:{full}")]
}

/// A partial's full name, as a block or partial of template `owner` means it.
pub(crate) fn full(owner: &str, included: &str) -> String {
    if included.contains('/') {
        included.to_owned()
    } else {
        format!("{owner}/{included}")
    }
}

/// The name of what `parent` includes.
pub(super) fn join(included: &str, parent: &str) -> String {
    let (escape, rest) = parent.split_once(':').unwrap_or(("text", parent));
    let owner = rest.split(['/', ':']).next().unwrap_or(rest);
    format!("{escape}:{}", full(owner, included))
}

/// How what is printed into a block or partial is escaped.
pub(super) fn escape(name: &str) -> AutoEscape {
    if name.starts_with("html:") {
        AutoEscape::Html
    } else {
        AutoEscape::None
    }
}

/// The full name of a partial; `None` for a block.
pub(super) fn partial(name: &str) -> Option<&str> {
    let (_, rest) = name.split_once(':')?;
    (!rest.contains(':')).then_some(rest)
}

/// The JSON Pointer of a block; empty for a partial.
pub(super) fn pointer(name: &str) -> &str {
    name.splitn(3, ':').nth(2).unwrap_or_default()
}
