//! Calls that come and go on one stream.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{Client, ClientError};
use crate::proto::{ExecuteStreamRequest, ExecuteStreamResponse, FunctionCalls, StreamAnswer};

/// Messages that wait for the transport; a further one waits with its sender.
const MESSAGES_MAX: usize = 4;

/// The side of a stream that sends calls. Clones send on the same stream; it has no more calls when the last of them is
/// dropped.
#[derive(Clone, Debug)]
pub struct CallSender {
    messages: mpsc::Sender<ExecuteStreamRequest>,
}

/// The side of a stream that reads answers. Dropping it stops what runs.
#[derive(Debug)]
pub struct CallAnswers {
    answers: Streaming<ExecuteStreamResponse>,
    client: Client,
}

pub(super) async fn open(client: &Client) -> Result<(CallSender, CallAnswers), ClientError> {
    let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
    let mut request = Request::new(ReceiverStream::new(receiver));
    if let Some(timeout) = client.timeout {
        request.set_timeout(timeout);
    }
    let answer = client.execution().execute_stream(request).await;
    let answers = answer.map_err(|status| client.error(&status))?.into_inner();
    Ok((CallSender { messages }, CallAnswers { answers, client: client.clone() }))
}

impl CallSender {
    /// Sends calls, all in one message: `Limits.stream_calls_max` of them at most. Waits while the daemon takes no more.
    /// True if the stream still goes on; if not, [`CallAnswers::next`] tells why.
    pub async fn send(&self, functions: Vec<FunctionCalls>) -> bool {
        self.messages.send(ExecuteStreamRequest { functions }).await.is_ok()
    }
}

impl CallAnswers {
    /// Answers that have come, at least one; `None` when all calls are answered and no more can come.
    ///
    /// # Errors
    /// [`ClientError`]: the stream is over. What a call did wrong is in its answer.
    pub async fn next(&mut self) -> Result<Option<Vec<StreamAnswer>>, ClientError> {
        let message = self.answers.message().await.map_err(|status| self.client.error(&status))?;
        Ok(message.map(|message| message.answers))
    }
}
