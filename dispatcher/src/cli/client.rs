//! What `send`, `status`, `watch` and `keys` share: where Herald is, how to ask it, and how its refusals read.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{self, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::problem::ProblemBody;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take, beyond what the question itself waits for.
const ANSWER: Duration = Duration::from_secs(30);

/// Most bytes of an answer that are read.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;

/// Where Herald is, and who asks.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connection {
    /// Where Herald listens.
    #[arg(
        long,
        env = "HERALD_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL",
        value_parser = server
    )]
    server: Url,
    /// API key; prefer the environment, since others on this machine see what is typed.
    #[arg(
        long,
        env = "HERALD_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    api_key: Option<String>,
    /// A file with a token of the cluster for Herald, as `kubectl create token NAME --audience herald` prints it.
    /// Stands over an API key.
    #[arg(long, env = "HERALD_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The namespace of templates, groups and recipients.
    #[arg(long, short, env = "HERALD_NAMESPACE", default_value = "default")]
    namespace: String,
}

/// Most bytes of a token.
const LONGEST_TOKEN: u64 = 64 * 1024;

/// A token from a file.
fn read_token(file: &Path) -> Result<String, ClientError> {
    let mut token = String::new();
    let read = std::fs::File::open(file)
        .and_then(|opened| opened.take(LONGEST_TOKEN).read_to_string(&mut token));
    read.map_err(|source| ClientError::ReadToken {
        file: file.to_owned(),
        source,
    })?;
    Ok(token)
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("server", &self.server.as_str())
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// Reads where Herald listens.
pub(super) fn server(text: &str) -> Result<Url, String> {
    if !text.contains("://") {
        return Err(format!("write it with its scheme, such as http://{text}"));
    }
    text.parse::<Url>().map_err(|error| error.to_string())
}

/// Why Herald did not answer what was asked. What it says is for people, over several lines where there are several
/// things to say.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No client could be made: the machine has no usable certificates, say.
    #[error("the HTTP client cannot be set up: {}", chain(source))]
    BuildClient {
        /// Why.
        source: reqwest::Error,
    },
    /// The URL cannot be extended with a path, or the key is not one.
    #[error("{what}")]
    ReadConnection {
        /// What is wrong with it.
        what: String,
    },
    /// The file with the token cannot be read.
    #[error(
        "the token cannot be read from {}: {source}; make one with kubectl create token NAME --audience herald",
        file.display()
    )]
    ReadToken {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answers there.
    #[error(
        "no answer from {server}: {}\nIs it running? `herald local DIR` starts it; --server or HERALD_URL says where it is.",
        unreached(source)
    )]
    Reach {
        /// Who was asked.
        server: String,
        /// Why there is no answer.
        source: reqwest::Error,
    },
    /// The answer broke off.
    #[error("the answer of {server} broke off: {}", chain(source))]
    ReadAnswer {
        /// Who was asked.
        server: String,
        /// Why.
        source: reqwest::Error,
    },
    /// Herald refused.
    #[error("{}", told(problem))]
    Refused {
        /// What it said.
        problem: Box<ProblemBody>,
    },
    /// What answers is not Herald, or not a version that this program can read.
    #[error("{server} answered {status} with something that is not Herald's: {what}")]
    Understand {
        /// Who was asked.
        server: String,
        /// The HTTP status.
        status: StatusCode,
        /// What could not be understood.
        what: String,
    },
}

impl ClientError {
    /// Whether what was asked for may have happened all the same.
    pub(super) fn is_uncertain(&self) -> bool {
        match self {
            Self::BuildClient { .. } | Self::ReadConnection { .. } | Self::ReadToken { .. } => {
                false
            }
            Self::Reach { source, .. } => !source.is_connect(),
            Self::ReadAnswer { .. } | Self::Understand { .. } => true,
            Self::Refused { problem } => problem.status >= 500,
        }
    }

    /// Whether Herald was asked at all.
    pub(super) fn has_asked(&self) -> bool {
        !matches!(
            self,
            Self::BuildClient { .. } | Self::ReadConnection { .. } | Self::ReadToken { .. }
        )
    }

    /// Whether Herald says that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { problem } if problem.status == 404)
    }
}

/// Why nobody answers. Of a connection that did not come about the innermost cause says it all.
fn unreached(error: &reqwest::Error) -> String {
    if !error.is_connect() {
        return chain(error);
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// An error with its causes, without saying anything twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    text
}

/// A problem over as many lines as it has things to say.
fn told(problem: &ProblemBody) -> String {
    let ProblemBody {
        r#type: _,
        title,
        status,
        detail,
        errors,
    } = problem;
    let mut text = format!("{title} ({status})");
    // Without a sentence of its own a problem repeats its first error there.
    let repeats = errors.iter().any(|error| detail.contains(&error.detail));
    if !detail.is_empty() && !repeats {
        let _ = write!(text, "\n  {detail}");
    }
    for error in errors {
        let at = if error.pointer.is_empty() {
            "the body"
        } else {
            &error.pointer
        };
        let _ = write!(text, "\n  {at}: {}", error.detail);
    }
    text
}

/// A caller of the API.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    server: Url,
    authorization: HeaderValue,
    namespace: String,
}

impl Client {
    /// Prepares to call; nothing is sent yet.
    pub(super) fn new(connection: Connection) -> Result<Self, ClientError> {
        let Connection {
            server,
            api_key,
            token_file,
            namespace,
        } = connection;
        if server.cannot_be_a_base() || !matches!(server.scheme(), "http" | "https") {
            return Err(ClientError::ReadConnection {
                what: format!("--server must be an http or https URL (got {server})"),
            });
        }
        let given = match token_file {
            Some(file) => Some(read_token(&file)?),
            None => api_key,
        };
        let Some(key) = given.filter(|key| !key.trim().is_empty()) else {
            return Err(ClientError::ReadConnection {
                what: "nothing says who asks: set HERALD_API_KEY, or in a cluster HERALD_TOKEN_FILE (--token-file)"
                    .to_owned(),
            });
        };
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {}", key.trim())).map_err(|_| {
                ClientError::ReadConnection {
                    what: "the API key or token has characters that none has".to_owned(),
                }
            })?;
        authorization.set_sensitive(true);
        // Another part of the program may have chosen the same provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("herald/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|source| ClientError::BuildClient { source })?;
        Ok(Self {
            http,
            server,
            authorization,
            namespace,
        })
    }

    /// The server that is asked, for messages.
    pub(super) fn server(&self) -> &str {
        self.server.as_str().trim_end_matches('/')
    }

    /// A call about the namespace: `path` is a list of segments, each taken as it is.
    pub(super) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let of_namespace = ["namespaces", &self.namespace];
        self.request_of_all(method, &[&of_namespace, path].concat())
    }

    /// A call that is about no namespace.
    pub(super) fn request_of_all(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.server.clone();
        // Only a URL that cannot be a base has no segments, and `new` refuses those.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1"]).extend(path);
        }
        self.http
            .request(method, url)
            .header(header::AUTHORIZATION, self.authorization.clone())
    }

    /// Asks for something and reads the JSON of the answer.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &(impl Serialize + ?Sized),
    ) -> Result<Answer<T>, ClientError> {
        self.ask(self.request(Method::GET, path).query(query)).await
    }

    /// Sends a request and reads the JSON of the answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<Answer<T>, ClientError> {
        let response = self.send(request.timeout(ANSWER)).await?;
        let status = response.status();
        let text = self.read(response).await?;
        match serde_json::from_str(&text) {
            Ok(value) => Ok(Answer { value, text }),
            Err(error) => Err(self.not_understood(status, &error.to_string())),
        }
    }

    /// Sends a request and answers the response if Herald did not refuse.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let reach = |source| ClientError::Reach {
            server: self.server().to_owned(),
            source,
        };
        let response = request.send().await.map_err(reach)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = self.read(response).await?;
        match serde_json::from_str(&text) {
            Ok(problem) => Err(ClientError::Refused {
                problem: Box::new(problem),
            }),
            Err(_) => Err(self.not_understood(status, "no problem+json")),
        }
    }

    async fn read(&self, mut response: Response) -> Result<String, ClientError> {
        let status = response.status();
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= LONGEST_ANSWER => {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => return Err(self.not_understood(status, "an answer without end")),
                Ok(None) => break,
                Err(source) => {
                    return Err(ClientError::ReadAnswer {
                        server: self.server().to_owned(),
                        source,
                    });
                }
            }
        }
        String::from_utf8(bytes)
            .map_err(|_| self.not_understood(status, "an answer that is no text"))
    }

    fn not_understood(&self, status: StatusCode, what: &str) -> ClientError {
        ClientError::Understand {
            server: self.server().to_owned(),
            status,
            what: what.to_owned(),
        }
    }
}

/// An answer, as it came and as it is understood.
#[derive(Debug, Clone)]
pub(super) struct Answer<T> {
    /// What it means.
    pub(super) value: T,
    /// Its JSON, with whatever this program does not know.
    pub(super) text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::FieldError;

    fn problem(detail: &str, errors: Vec<FieldError>) -> ProblemBody {
        ProblemBody {
            r#type: "/problems/invalid-request".to_owned(),
            title: "The request does not say what is expected".to_owned(),
            status: 422,
            detail: detail.to_owned(),
            errors,
        }
    }

    fn connection(server: &str) -> Connection {
        Connection {
            server: server.parse().unwrap(),
            api_key: Some("secret".to_owned()),
            token_file: None,
            namespace: "shop".to_owned(),
        }
    }

    #[test]
    fn a_token_is_read_from_its_file_and_a_missing_file_says_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let with_token = || Connection {
            api_key: None,
            token_file: Some(file.clone()),
            ..connection("http://h.example")
        };
        let error = Client::new(with_token()).unwrap_err();
        assert!(
            !error.has_asked() && error.to_string().contains("kubectl create token"),
            "{error}"
        );
        std::fs::write(&file, "eyJ.eyJ.c2ln\n").unwrap();
        let client = Client::new(with_token()).unwrap();
        assert_eq!(client.authorization, "Bearer eyJ.eyJ.c2ln");
    }

    #[test]
    fn a_problem_says_everything_that_is_wrong_and_nothing_twice() {
        let errors = vec![
            FieldError::new("/recipients/0/address/email", "must be a mail address"),
            FieldError::new("", "is not enough"),
        ];
        let problem = problem(
            "/recipients/0/address/email: must be a mail address (and 1 more in errors)",
            errors,
        );
        assert_eq!(
            told(&problem),
            "The request does not say what is expected (422)\n  \
             /recipients/0/address/email: must be a mail address\n  the body: is not enough"
        );
    }

    #[test]
    fn a_problem_without_places_has_its_sentence() {
        assert_eq!(
            told(&problem("it was long", vec![])),
            "The request does not say what is expected (422)\n  it was long"
        );
    }

    #[test]
    fn a_path_keeps_the_servers_own_and_escapes_what_is_given() {
        let client = Client::new(connection("http://h.example/herald/")).unwrap();
        let request = client.request(Method::GET, &["recipients", "a/b c"]);
        assert_eq!(
            request.build().unwrap().url().as_str(),
            "http://h.example/herald/v1/namespaces/shop/recipients/a%2Fb%20c"
        );
    }

    #[test]
    fn a_server_that_is_no_http_url_is_refused() {
        for wrong in ["mailto:a@b.example", "ftp://h.example"] {
            let error = Client::new(connection(wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_server_without_a_scheme_is_told_how_to_write_it() {
        for text in ["127.0.0.1:9000", "localhost:9000", "herald.example"] {
            let error = super::server(text).unwrap_err();
            assert!(error.ends_with(&format!("http://{text}")), "{error}");
        }
        assert!(super::server("https://h.example/herald").is_ok());
    }

    #[test]
    fn without_a_key_nobody_is_asked() {
        for api_key in [None, Some(" ".to_owned())] {
            let connection = Connection {
                api_key,
                ..connection("http://h.example")
            };
            let error = Client::new(connection).unwrap_err();
            assert!(!error.has_asked());
            assert!(error.to_string().contains("HERALD_API_KEY"), "{error}");
        }
    }

    #[test]
    fn the_key_is_in_no_debug_form() {
        let connection = connection("http://h.example");
        assert!(!format!("{connection:?}").contains("secret"));
        let client = Client::new(connection).unwrap();
        assert!(!format!("{client:?}").contains("secret"));
    }

    #[tokio::test]
    async fn nobody_listening_says_where_and_what_to_do() {
        // Bound and dropped: nothing listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = Client::new(connection(&format!("http://{address}"))).unwrap();
        let error = client
            .get::<String>(&["notifications"], &())
            .await
            .unwrap_err();
        assert!(!error.is_uncertain());
        let text = error.to_string();
        assert!(
            text.contains(&address.to_string()) && text.contains("herald local"),
            "{text}"
        );
        assert_eq!(text.matches("refused").count(), 1, "{text}");
    }
}
