//! What one slot of the load generator does, over and over.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use codecached::{
    client::{CallAnswers, CallSender, Client, ClientError},
    proto::{
        BlobFormat, EntryView, EvictRequest, ExecuteRequest, FlatEntry, InstallRequest, LookupRequest, ResultType,
        Value, code_cache_service_client::CodeCacheServiceClient, evict_request, execute_request,
        execute_response::Outcome, execution_service_client::ExecutionServiceClient, lookup_request, value::Kind,
    },
};
use tokio::task::JoinSet;
use tonic::{Status, transport::Channel};

use super::object::Object;
use crate::{
    args::{Bench, By, Workload},
    failure::Failure,
};

/// `lea eax, [rdi + rsi]; ret`: int32_t add(int32_t, int32_t).
const ADD: [u8; 4] = [0x8d, 0x04, 0x37, 0xc3];

/// The filling of blobs: int3, which traps should anything run into it.
const FILLING: u8 = 0xcc;

/// After so many entries in a row that are gone already, older ones are gone too.
const GONE_MAX: u32 = 1000;

/// Of the number of an install, those that count within a slot.
const COUNT_BITS: u32 = 40;

/// What all slots share.
#[derive(Debug)]
pub(super) struct Plan {
    workload: Workload,
    by: By,
    pub(super) recipe: Recipe,
    slots: usize,
    /// Rows of a batch, or calls of a message.
    pub(super) together: usize,
    /// Installed before the load begins.
    known: Vec<Known>,
}

/// How blobs and keys are made of a number.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) namespace: String,
    run: u64,
    blob_bytes: usize,
    /// What is installed instead of flat code.
    object: Option<Arc<Object>>,
}

#[derive(Clone, Debug)]
pub(super) struct Known {
    key: Bytes,
    pub(super) handle: u64,
}

/// One call after the other.
#[derive(Debug)]
pub(super) struct Worker {
    /// Opened with the first call.
    pub(super) stream: Option<(CallSender, CallAnswers)>,
    pub(super) plan: Arc<Plan>,
    pub(super) client: Client,
    cache: CodeCacheServiceClient<Channel>,
    pub(super) execution: ExecutionServiceClient<Channel>,
    pub(super) slot: u64,
    pub(super) steps: u64,
    installed: u64,
}

/// Why a step did not do what it should.
#[derive(Debug)]
pub(super) enum Fault {
    /// The daemon refused, or cannot be reached.
    Refused(Box<Status>),
    /// The call did not return, or not the sum.
    WrongAnswer,
    /// The daemon refused, in the words of the client.
    Failed(ClientError),
}

impl Plan {
    /// Installs the entries that are looked up and called.
    pub(super) async fn install(clients: &[Client], namespace: &str, asked: &Bench, run: u64) -> Result<Self, Failure> {
        let object = asked.object.as_deref().map(Object::read).transpose()?.map(Arc::new);
        if object.is_some() && asked.workload != Workload::Install {
            return Err(Failure::misuse(
                "--object is for the workload install: the others call a function of their own",
            ));
        }
        let mut plan = Self {
            workload: asked.workload,
            by: asked.by,
            recipe: Recipe { namespace: namespace.to_owned(), run, blob_bytes: asked.blob_bytes as usize, object },
            slots: asked.in_flight.into(),
            together: asked.together as usize,
            known: vec![],
        };
        let count = if asked.workload == Workload::Install { 0 } else { u64::from(asked.keys) };
        let mut tasks = JoinSet::new();
        for slot in 0..plan.slots {
            let (client, recipe) = (clients[slot % clients.len()].clone(), plan.recipe.clone());
            let numbers = (slot as u64..count).step_by(plan.slots);
            tasks.spawn(async move { install_all(&client, &recipe, numbers).await });
        }
        while let Some(done) = tasks.join_next().await {
            let known = done.map_err(|error| Failure::local(format!("a task ended early: {error}")))?;
            plan.known.extend(known.map_err(|error| Failure::client("install the entries to measure with", error))?);
        }
        Ok(plan)
    }
}

impl Recipe {
    /// An install of bytes that no other number has.
    fn request(&self, number: u64) -> InstallRequest {
        if let Some(object) = &self.object {
            return InstallRequest {
                namespace: self.namespace.clone(),
                key: self.key(number),
                format: BlobFormat::ElfObject.into(),
                blob: object.numbered(number >> COUNT_BITS, number & ((1 << COUNT_BITS) - 1)).into(),
                ..InstallRequest::default()
            };
        }
        let mut blob = vec![FILLING; self.blob_bytes];
        blob[..ADD.len()].copy_from_slice(&ADD);
        let tail = self.blob_bytes - 16;
        blob[tail..tail + 8].copy_from_slice(&self.run.to_le_bytes());
        blob[tail + 8..].copy_from_slice(&number.to_le_bytes());
        InstallRequest {
            namespace: self.namespace.clone(),
            key: self.key(number),
            format: BlobFormat::Flat.into(),
            blob: blob.into(),
            flat_entries: vec![FlatEntry { name: "add".into(), offset_bytes: 0 }],
            ..InstallRequest::default()
        }
    }

    /// 32 bytes.
    fn key(&self, number: u64) -> Bytes {
        format!("bench-{:010x}-{number:015x}", self.run).into()
    }
}

async fn install_all(
    client: &Client,
    recipe: &Recipe,
    numbers: impl Iterator<Item = u64>,
) -> Result<Vec<Known>, ClientError> {
    let mut known = Vec::new();
    for number in numbers {
        let request = recipe.request(number);
        let key = request.key.clone();
        let handle = client.install(request).await?.entry.unwrap_or_default().handle;
        known.push(Known { key, handle });
    }
    Ok(known)
}

impl Worker {
    pub(super) fn new(plan: Arc<Plan>, client: &Client, slot: u16) -> Self {
        Self {
            plan,
            client: client.clone(),
            cache: client.cache(),
            execution: client.execution(),
            stream: None,
            slot: slot.into(),
            steps: 0,
            installed: 0,
        }
    }

    /// One call of the workload.
    pub(super) async fn step(&mut self) -> Result<(), Fault> {
        self.steps += 1;
        match self.plan.workload {
            Workload::Lookup => self.lookup().await,
            Workload::Execute => self.execute().await,
            Workload::ExecuteBatch => self.execute_batch().await,
            Workload::ExecuteStream => self.execute_stream().await,
            Workload::Install => self.install().await,
            // The slots are out of step with each other, so that the mix holds at every moment.
            Workload::Mixed => match (self.steps + self.slot * 37) % 100 {
                0 => self.install().await,
                1..=9 => self.lookup().await,
                _ => self.execute().await,
            },
        }
    }

    async fn lookup(&mut self) -> Result<(), Fault> {
        let known = self.known();
        let target = match self.plan.by {
            By::Key => lookup_request::Target::Key(known.key.clone()),
            By::Handle => lookup_request::Target::Handle(known.handle),
        };
        let expected = known.handle;
        let request = LookupRequest {
            namespace: self.plan.recipe.namespace.clone(),
            target: Some(target),
            peek: false,
            view: EntryView::Basic.into(),
        };
        let answer = self.cache.lookup(request).await?.into_inner();
        right(answer.entry.is_some_and(|entry| entry.handle == expected))
    }

    async fn execute(&mut self) -> Result<(), Fault> {
        let (left, right_hand) = (self.steps as i32, self.slot as i32);
        let value = |number| Value { kind: Some(Kind::I32(number)) };
        let request = ExecuteRequest {
            namespace: self.plan.recipe.namespace.clone(),
            target: Some(execute_request::Target::Handle(self.known().handle)),
            symbol: "add".into(),
            arguments: vec![value(left), value(right_hand)],
            result: ResultType::I32.into(),
            ..ExecuteRequest::default()
        };
        let answer = self.execution.execute(request).await?.into_inner();
        let sum = value(left.wrapping_add(right_hand));
        right(matches!(answer.outcome, Some(Outcome::Returned(returned)) if returned.value == Some(sum)))
    }

    async fn install(&mut self) -> Result<(), Fault> {
        let request = self.plan.recipe.request(self.install_number(self.installed));
        self.installed += 1;
        let answer = self.cache.install(request).await?.into_inner();
        right(answer.created)
    }

    /// Takes out what this slot installed, and its part of what was there before, as far as time allows.
    pub(super) async fn clean_up(self, deadline: Instant) {
        let known =
            self.plan.known.iter().skip(self.slot as usize).step_by(self.plan.slots).map(|known| known.key.clone());
        // The newest first: the cache drops the oldest by itself.
        let installed = (0..self.installed).rev().map(|count| self.plan.recipe.key(self.install_number(count)));
        let mut gone = 0;
        for key in known.chain(installed) {
            if gone == GONE_MAX || Instant::now() >= deadline {
                return;
            }
            let (namespace, target) = (self.plan.recipe.namespace.clone(), Some(evict_request::Target::Key(key)));
            match self.client.evict(EvictRequest { namespace, target, wait: false }).await {
                Ok(_) => gone = 0,
                Err(error) if error.is_not_found() => gone += 1,
                Err(_) => return,
            }
        }
    }

    pub(super) fn known(&self) -> &Known {
        // Slots start far apart, with a stride that is prime.
        let index = (self.steps + self.slot * 7919) % self.plan.known.len() as u64;
        &self.plan.known[index as usize]
    }

    /// Beyond the numbers of what was there before, which fit 40 bits.
    fn install_number(&self, count: u64) -> u64 {
        (self.slot + 1) << COUNT_BITS | count
    }
}

pub(super) fn right(answer: bool) -> Result<(), Fault> {
    if answer { Ok(()) } else { Err(Fault::WrongAnswer) }
}

impl Fault {
    /// The reason that the daemon gave, or what went wrong here.
    pub(super) fn reason(&self, worker: &Worker) -> String {
        match self {
            Self::Refused(status) => worker.client.error(status).reason().to_owned(),
            Self::WrongAnswer => "WRONG_ANSWER".to_owned(),
            Self::Failed(error) => error.reason().to_owned(),
        }
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_and_keys_differ_and_have_their_sizes() {
        let recipe = Recipe { namespace: String::new(), run: 0xff_ffff_ffff, blob_bytes: 256, object: None };
        let [first, second] = [0, u64::from(u16::MAX) << 40].map(|number| recipe.request(number));
        assert_eq!((first.key.len(), second.key.len()), (32, 32));
        assert_ne!(first.key, second.key);
        assert_eq!((first.blob.len(), &first.blob[..4]), (256, &ADD[..]));
        assert_ne!(first.blob, second.blob);
    }
}
