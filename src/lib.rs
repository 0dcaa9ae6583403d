//! codecached: a daemon that installs, finds, runs and evicts native code under a hard memory budget.
//!
//! The rooms, in order of dependency; each knows only those above it that it names:
//!
//! | room | what it is |
//! |---|---|
//! | [`arena`] | executable memory: reserve, write, publish, free |
//! | [`code`] | object bytes, parsed and linked; pure |
//! | [`cache`] | which image is resident: index, recency, budget, pins |
//! | [`confine`] | what the process gives up once it has started |
//! | [`exec`] | calls into resident code and comes back, whatever the code does |
//! | [`tools`] | resident code told to profilers, debuggers and unwinders |
//! | [`service`] | the gRPC edge: convert, authorise, answer |
//! | [`config`], [`metrics`] | one library each |
//! | [`daemon`] | builds the parts in order, runs and drains them |
//! | [`proto`], [`client`], [`demo`] | the messages, and those who send them |
//!
//! One value travels from type to type and never back: bytes, [`code::Image`], [`arena::Draft`], [`arena::Published`],
//! an entry of the [`cache::Cache`], [`cache::Pinned`], [`exec::Call`], [`exec::Outcome`]. The only thing that
//! flows the other way is `Drop`: the last owner of an entry gives its memory back.

#![warn(missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod arena;
pub mod cache;
pub mod client;
pub mod code;
pub mod config;
pub mod confine;
pub mod daemon;
pub mod demo;
pub mod exec;
pub mod metrics;
pub mod proto;
pub mod service;
pub mod tools;
