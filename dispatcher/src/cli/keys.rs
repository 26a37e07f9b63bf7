//! `herald keys`: API keys of a running Herald.

use std::io::Write;
use std::process::ExitCode;

use jiff::tz::TimeZone;
use reqwest::Method;

use super::client::{Client, Connection};
use super::table::{Output, PLAIN, Table};
use super::{BOLD, CliError, DIM, GOOD, harmless, paint};
use crate::api::PageOf;
use crate::api::keys::{KeyView, MadeKey, NewKey};

/// What its help says.
pub(super) const HELP: &str = "\
Makes, lists and deletes API keys of a running Herald. The key that asks must have the scope *.\n\n\
A key's name is what its notifications have as their sender. Scopes are such as notifications:create, \
notifications:read, addresses, recipients:*, or * for everything; an unknown one is refused with the list of all.\n\n\
Examples:
  A key for an application that sends and asks what became of it:
    herald keys create --name orders \\
      --scope notifications:create notifications:read

  Which there are, and one less:
    herald keys list
    herald keys delete orders";

/// Makes, lists and deletes API keys.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key, and show it this once.
    Create {
        /// What its notifications have as their sender: lower-case letters, digits and dashes.
        #[arg(long)]
        name: String,
        /// What it may do, such as notifications:create, recipients:* or *; may be repeated.
        #[arg(long = "scope", value_name = "SCOPE", required = true, num_args = 1..)]
        scopes: Vec<String>,
        /// How it is shown.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the keys, without the keys themselves.
    List {
        /// How they are shown.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        connection: Connection,
    },
    /// Delete a key: who has it is refused from then on.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Does what was asked, and writes what came of it to `out`.
pub(super) async fn run(args: Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let report = match args.command {
        Command::Create {
            name,
            scopes,
            output,
            connection,
        } => {
            let client = Client::new(connection).map_err(CliError::Ask)?;
            let post = client.request_of_all(Method::POST, &["keys"]);
            let post = post.json(&NewKey { name, scopes });
            let made = client.ask::<MadeKey>(post).await.map_err(CliError::Ask)?;
            match output {
                Output::Json => made.text + "\n",
                Output::Table => format!(
                    "{}\n{}\n",
                    paint(BOLD, &harmless(&made.value.key)),
                    paint(DIM, "# shown this once: it is not kept")
                ),
            }
        }
        Command::List { output, connection } => {
            let client = Client::new(connection).map_err(CliError::Ask)?;
            let get = client.request_of_all(Method::GET, &["keys"]);
            let keys = client.ask::<PageOf<KeyView>>(get).await;
            let keys = keys.map_err(CliError::Ask)?;
            match output {
                Output::Json => keys.text + "\n",
                Output::Table => table(&keys.value.items),
            }
        }
        Command::Delete { name, connection } => {
            let client = Client::new(connection).map_err(CliError::Ask)?;
            let delete = client.request_of_all(Method::DELETE, &["keys", &name]);
            client.send(delete).await.map_err(CliError::Ask)?;
            format!("{} {}\n", paint(GOOD, "deleted"), harmless(&name))
        }
    };
    out.write_all(report.as_bytes()).map_err(CliError::Print)?;
    Ok(ExitCode::SUCCESS)
}

fn table(keys: &[KeyView]) -> String {
    let mut table = Table::new(["name", "made", "scopes"]);
    for key in keys {
        let made = key.created_at.to_zoned(TimeZone::system());
        table.row([
            (key.name.clone(), BOLD),
            (made.strftime("%Y-%m-%d %H:%M").to_string(), PLAIN),
            (key.scopes.join(" "), PLAIN),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::table::uncoloured;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn scopes_may_follow_each_other_or_be_repeated() {
        for words in [
            "keys create --name a --scope addresses contents",
            "keys create --name a --scope addresses --scope contents",
        ] {
            let typed = Typed::try_parse_from(words.split(' ')).unwrap();
            let Command::Create { scopes, .. } = typed.args.command else {
                panic!("{words}");
            };
            assert_eq!(scopes, ["addresses", "contents"]);
        }
        assert!(Typed::try_parse_from("keys create --name a".split(' ')).is_err());
    }

    #[test]
    fn a_list_shows_what_each_may_do() {
        let text = table(&[KeyView {
            name: "orders".to_owned(),
            scopes: vec!["addresses".to_owned(), "contents".to_owned()],
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }]);
        assert!(
            uncoloured(&text).ends_with("addresses contents\n"),
            "{text}"
        );
    }
}
