//! The function that calls are made of: found, bounded, and what its traps are called.

use std::{ops::Range, sync::Arc, time::Duration};

use super::{
    Service,
    asked::{Asked, Wire},
    convert, disassemble,
    failure::{Failure, Reason},
    signature,
};
use crate::{
    cache::{Handle, Meta, Pinned},
    exec::{Arg, ResultType, Trap},
    proto,
};

/// Wall clock that a call may take for each unit of its CPU limit, unless it says otherwise: calls share the
/// processors with others.
const WALL_PER_CPU: u32 = 20;

/// Times that a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) cpu_limit: Duration,
    pub(super) wall_cap: Duration,
}

/// A function of an entry, which is kept.
pub(super) struct Function {
    pub(super) callee: Pinned,
    /// Its address.
    pub(super) entry: u64,
    pub(super) symbol: String,
}

/// What is left of a function while it is called: enough to name it.
pub(super) struct Called {
    pub(super) meta: Arc<Meta>,
    pub(super) handle: Handle,
    code: Range<u64>,
}

impl Function {
    /// # Errors
    /// INVALID_FIELD, no such entry, no such function.
    pub(super) fn find(
        service: &Service,
        namespace: &str,
        target: Option<impl Into<Wire>>,
        symbol: String,
    ) -> Result<Self, Failure> {
        let asked = Asked::new(namespace, target)?;
        let callee = service.cache.pin(asked.target()).ok_or_else(|| asked.absent())?;
        let entry = callee.function(&symbol).ok_or_else(|| no_function(&callee, &symbol))?;
        Ok(Self { callee, entry, symbol })
    }

    /// Holds a call to the declared signature; answers the type of the result.
    ///
    /// # Errors
    /// INVALID_FIELD.
    pub(super) fn check(&self, args: &[Arg], result: i32) -> Result<ResultType, Failure> {
        signature::check(&self.symbol, self.callee.signature(&self.symbol), args, result)
    }

    pub(super) fn called(&self) -> Called {
        let callee = &self.callee;
        Called { meta: Arc::clone(callee.meta()), handle: callee.handle(), code: callee.code_range() }
    }
}

impl Called {
    pub(super) fn trap(&self, service: &Service, trap: &Trap) -> proto::Trap {
        let instruction = disassemble::trapped(service, self.handle, &self.meta.name, trap);
        convert::trap(trap, &self.meta, &self.code, instruction)
    }
}

impl Times {
    /// # Errors
    /// INVALID_FIELD.
    pub(super) fn new(
        service: &Service,
        cpu_limit: Option<prost_types::Duration>,
        wall_cap: Option<prost_types::Duration>,
    ) -> Result<Self, Failure> {
        let max = service.limits.cpu_limit_max;
        let cpu_limit = match cpu_limit {
            Some(wire) => convert::duration("cpu_limit", wire)?,
            None => service.limits.cpu_limit_default,
        };
        if cpu_limit.is_zero() || cpu_limit > max {
            return Err(Failure::field("cpu_limit", format!("must be above 0 and at most {} ms", max.as_millis())));
        }
        let wall_cap_max = max * WALL_PER_CPU;
        let wall_cap = match wall_cap {
            Some(wire) => convert::duration("wall_cap", wire)?,
            None => cpu_limit * WALL_PER_CPU,
        };
        if wall_cap.is_zero() || wall_cap > wall_cap_max {
            let message = format!("must be above 0 and at most {} ms", wall_cap_max.as_millis());
            return Err(Failure::field("wall_cap", message));
        }
        Ok(Self { cpu_limit, wall_cap })
    }
}

fn no_function(callee: &Pinned, symbol: &str) -> Failure {
    let functions = callee.meta().exports.symbols().iter().filter(|it| it.is_function).map(|it| &*it.name);
    let offered: Vec<&str> = functions.take(8).collect();
    let message = format!("no function {:?} in the entry; it has {}", symbol, offered.join(", "));
    Failure::absent(Reason::SymbolNotFound, "symbol", symbol.escape_debug().take(256).collect::<String>(), message)
}
