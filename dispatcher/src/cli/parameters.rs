//! A template's parameters, as they are typed: the object itself, a file of JSON or YAML, or standard input.

use std::io::{self, Read as _};
use std::path::Path;

use serde_json::{Map, Value};

use super::CliError;
use crate::catalog::yaml;

/// Parameters from where `text` says: itself if it begins with a brace, standard input if it is `-`, else a file.
pub(super) fn read(text: &str) -> Result<Map<String, Value>, CliError> {
    let wrong = |place: &str, message: String| CliError::ReadParameters {
        place: place.to_owned(),
        message,
    };
    let (place, value) = if text.trim_start().starts_with('{') {
        let place = "--parameters";
        let mut documents = yaml::read(text.as_bytes()).map_err(|e| wrong(place, e.to_string()))?;
        let value = documents.pop().map(|document| document.value);
        (place, value.unwrap_or_default())
    } else {
        (text, read_file(Path::new(text))?)
    };
    match value {
        Value::Object(parameters) => Ok(parameters),
        _ => Err(wrong(
            place,
            "an object is wanted, such as {name: value}".to_owned(),
        )),
    }
}

fn read_file(file: &Path) -> Result<Value, CliError> {
    let is_input = file.as_os_str() == "-";
    let mut bytes = Vec::new();
    let limit = yaml::MAX_BYTES as u64 + 1;
    let read = if is_input {
        io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|source| CliError::ReadFile {
        file: file.to_owned(),
        source,
    })?;
    let name = if is_input {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    };
    let mut documents = yaml::read(&bytes).map_err(|error| CliError::ReadParameters {
        place: format!("{name}:{}", error.line),
        message: error.to_string(),
    })?;
    match documents.len() {
        0 => Ok(Value::Object(Map::new())),
        1 => Ok(documents.remove(0).value),
        more => Err(CliError::ReadParameters {
            place: name,
            message: format!("has {more} documents; one object of parameters is wanted"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_from_the_command_line_or_a_file_and_errors_say_which() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.json");
        std::fs::write(&file, r#"{"a": 1}"#).unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(read(file).unwrap(), read(" {a: 1}").unwrap());
        let missing = read("nowhere.json").unwrap_err().to_string();
        assert!(missing.contains("nowhere.json"), "{missing}");
        let broken = read("{").unwrap_err().to_string();
        assert!(broken.contains("--parameters"), "{broken}");
        std::fs::write(file, "[1]").unwrap();
        let list = read(file).unwrap_err().to_string();
        assert!(list.contains("p.json"), "{list}");
    }
}
