//! The token, read again whenever the broker asks who we are.

use async_trait::async_trait;
use pulsar::authentication::Authentication;
use pulsar::error::AuthenticationError;
use tokio::sync::watch;

use super::Token;

/// Answers the broker's question, and counts how often it was asked.
///
/// It is asked for each new connection, and again when a token is about to expire; which of both it was cannot be told.
pub(super) struct Answer {
    token: Token,
    asked: watch::Sender<u64>,
}

impl Answer {
    pub(super) fn new(token: Token, asked: watch::Sender<u64>) -> Self {
        Self { token, asked }
    }
}

#[async_trait]
impl Authentication for Answer {
    fn auth_method_name(&self) -> String {
        match self.token {
            Token::None => "none".to_owned(),
            Token::Fixed(_) | Token::File(_) => "token".to_owned(),
        }
    }

    async fn initialize(&mut self) -> Result<(), AuthenticationError> {
        Ok(())
    }

    async fn auth_data(&mut self) -> Result<Vec<u8>, AuthenticationError> {
        self.asked.send_modify(|asked| *asked += 1);
        match &self.token {
            Token::None => Ok(Vec::new()),
            Token::Fixed(token) => Ok(token.trim().as_bytes().to_vec()),
            Token::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(token) => Ok(token.trim().as_bytes().to_vec()),
                Err(error) => Err(AuthenticationError::Custom(format!(
                    "the token in {} cannot be read: {error}",
                    path.display()
                ))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_is_read_each_time_and_the_question_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let asked = watch::Sender::new(0);
        let mut answer = Answer::new(Token::File(path.clone()), asked.clone());
        assert!(answer.auth_data().await.is_err());
        for token in ["first", "second"] {
            std::fs::write(&path, format!("{token}\n")).unwrap();
            assert_eq!(answer.auth_data().await.unwrap(), token.as_bytes());
        }
        assert_eq!(*asked.borrow(), 3);
    }
}
