//! The functions, each as a front end would say it.

use cranelift_codegen::ir::{
    Block, BlockArg, BlockCall, InstBuilder as _, JumpTableData, MemFlagsData, Type, Value, ValueListPool,
    condcodes::IntCC,
    types::{F32, F32X4, F64, I32, I64},
};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module as _};

use crate::build::{Body, Made, Maker};

const FLAGS: MemFlagsData = MemFlagsData::new();

const PLANETS: [&str; 8] = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"];
const COEFFICIENTS: [f64; 6] = [0.5, -1.25, 3.0, 0.1, -7.5, 2.0];

pub(crate) fn all(maker: &mut Maker) -> Made<()> {
    collatz(maker)?;
    opcode(maker)?;
    dot(maker)?;
    scale(maker)?;
    planet(maker)?;
    fibonacci(maker)?;
    apply(maker)?;
    bump(maker)?;
    polynomial(maker)?;
    hypotenuse(maker)?;
    multiply_high(maker)?;
    multiply4(maker)?;
    bits(maker)
}

impl Body<'_, '_> {
    fn number(&mut self, kind: Type, value: i64) -> Value {
        self.code.ins().iconst(kind, value)
    }

    fn load(&mut self, kind: Type, at: Value, offset: i32) -> Value {
        self.code.ins().load(kind, FLAGS, at, offset)
    }

    fn store(&mut self, value: Value, at: Value, offset: i32) {
        self.code.ins().store(FLAGS, value, at, offset);
    }

    /// Where element `index` of `1 << shift` bytes is.
    fn element(&mut self, base: Value, index: Value, shift: i64) -> Value {
        let shift = self.number(I64, shift);
        let offset = self.code.ins().ishl(index, shift);
        self.code.ins().iadd(base, offset)
    }

    /// Counts from 0 in steps while `count + step <= n`, with values that change; answers where the count ended, and them.
    fn count(
        &mut self,
        n: Value,
        step: i64,
        from: (Value, &[(Type, Value)]),
        turn: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let (start, carried) = from;
        let kinds: Vec<Type> = std::iter::once(I64).chain(carried.iter().map(|&(kind, _)| kind)).collect();
        let [head, body, done] = [&kinds[..], &[], &[]].map(|kinds| self.block(kinds));
        let first: Vec<BlockArg> =
            std::iter::once(start).chain(carried.iter().map(|&(_, value)| value)).map(BlockArg::Value).collect();
        self.code.ins().jump(head, &first);
        let values = self.begin(head);
        let step = self.number(I64, step);
        let next = self.code.ins().iadd(values[0], step);
        let goes_on = self.code.ins().icmp(IntCC::UnsignedLessThanOrEqual, next, n);
        self.code.ins().brif(goes_on, body, &[], done, &[]);
        self.begin(body);
        let turned = turn(self, values[0], &values[1..]);
        let again: Vec<BlockArg> = std::iter::once(next).chain(turned).map(BlockArg::Value).collect();
        self.code.ins().jump(head, &again);
        self.begin(done);
        (values[0], values[1..].to_vec())
    }
}

fn collatz(maker: &mut Maker) -> Made<()> {
    maker.function("collatz", Linkage::Export, &[I64], Some(I32), |body, of| {
        let [head, turn, done] = [&[I64, I32][..], &[], &[]].map(|kinds| body.block(kinds));
        let [zero, one, three] = [0, 1, 3].map(|n| body.number(I64, n));
        let [none, step] = [0, 1].map(|n| body.number(I32, n));
        body.code.ins().jump(head, &[of[0].into(), none.into()]);
        let values = body.begin(head);
        let goes_on = body.code.ins().icmp(IntCC::UnsignedGreaterThan, values[0], one);
        body.code.ins().brif(goes_on, turn, &[], done, &[]);
        body.begin(turn);
        let odd = body.code.ins().band(values[0], one);
        let is_even = body.code.ins().icmp(IntCC::Equal, odd, zero);
        let half = body.code.ins().ushr(values[0], one);
        let tripled = body.code.ins().imul(values[0], three);
        let more = body.code.ins().iadd(tripled, one);
        let next = body.code.ins().select(is_even, half, more);
        let steps = body.code.ins().iadd(values[1], step);
        body.code.ins().jump(head, &[next.into(), steps.into()]);
        body.begin(done);
        Ok(Some(values[1]))
    })?;
    Ok(())
}

/// What a case of `opcode` gives.
fn operation(body: &mut Body<'_, '_>, op: usize, a: Value, b: Value) -> Value {
    match op {
        0 => body.code.ins().iadd(a, b),
        1 => body.code.ins().isub(a, b),
        2 => body.code.ins().imul(a, b),
        3 => body.code.ins().band(a, b),
        4 => body.code.ins().bor(a, b),
        5 => body.code.ins().bxor(a, b),
        6 => body.code.ins().ishl(a, b),
        7 => body.code.ins().sshr(a, b),
        8 => body.code.ins().bnot(a),
        9 => body.code.ins().ineg(a),
        10 => {
            let is_less = body.code.ins().icmp(IntCC::SignedLessThan, a, b);
            body.code.ins().uextend(I64, is_less)
        }
        11 => body.code.ins().smax(a, b),
        12 => {
            let (less, three) = (body.code.ins().smin(a, b), body.number(I64, 3));
            body.code.ins().imul(less, three)
        }
        _ => {
            let (a, b) = (body.code.ins().imul(a, a), body.code.ins().imul(b, b));
            body.code.ins().isub(a, b)
        }
    }
}

/// A table of jumps.
fn opcode(maker: &mut Maker) -> Made<()> {
    maker.function("opcode", Linkage::Export, &[I32, I64, I64], Some(I64), |body, of| {
        let cases: Vec<_> = (0..14).map(|_| body.block(&[])).collect();
        let (other, done) = (body.block(&[]), body.block(&[I64]));
        let pool = &mut body.code.func.dfg.value_lists;
        let targets: Vec<_> = cases.iter().map(|&case| to(case, pool)).collect();
        let table = JumpTableData::new(to(other, pool), &targets);
        let table = body.code.create_jump_table(table);
        body.code.ins().br_table(of[0], table);
        for (op, case) in cases.into_iter().enumerate() {
            body.begin(case);
            let value = operation(body, op, of[1], of[2]);
            body.code.ins().jump(done, &[value.into()]);
        }
        body.begin(other);
        let none = body.number(I64, -1);
        body.code.ins().jump(done, &[none.into()]);
        Ok(Some(body.begin(done)[0]))
    })?;
    Ok(())
}

fn to(block: Block, pool: &mut ValueListPool) -> BlockCall {
    BlockCall::new(block, [], pool)
}

fn dot(maker: &mut Maker) -> Made<()> {
    maker.function("dot", Linkage::Export, &[I64, I64, I64], Some(F64), |body, of| {
        let (start, none) = (body.number(I64, 0), body.code.ins().f64const(0.0));
        let (_, sums) = body.count(of[2], 1, (start, &[(F64, none)]), |body, index, sums| {
            let [a, b] = [of[0], of[1]].map(|base| {
                let at = body.element(base, index, 3);
                body.load(F64, at, 0)
            });
            let product = body.code.ins().fmul(a, b);
            vec![body.code.ins().fadd(sums[0], product)]
        });
        Ok(Some(sums[0]))
    })?;
    Ok(())
}

/// Four at once, then one at once.
fn scale(maker: &mut Maker) -> Made<()> {
    maker.function("scale", Linkage::Export, &[I64, I64, F32], None, |body, of| {
        let (start, one) = (body.number(I64, 0), body.code.ins().f32const(1.0));
        let (ones, factors) = (body.code.ins().splat(F32X4, one), body.code.ins().splat(F32X4, of[2]));
        let (at, _) =
            body.count(of[1], 4, (start, &[]), |body, index, _| scaled(body, of[0], index, (F32X4, factors, ones)));
        body.count(of[1], 1, (at, &[]), |body, index, _| scaled(body, of[0], index, (F32, of[2], one)));
        Ok(None)
    })?;
    Ok(())
}

fn scaled(body: &mut Body<'_, '_>, base: Value, index: Value, by: (Type, Value, Value)) -> Vec<Value> {
    let (kind, factor, one) = by;
    let at = body.element(base, index, 2);
    let value = body.load(kind, at, 0);
    let product = body.code.ins().fmul(value, factor);
    let sum = body.code.ins().fadd(product, one);
    body.store(sum, at, 0);
    vec![]
}

/// A table of the addresses of strings, and two functions of the host.
fn planet(maker: &mut Maker) -> Made<()> {
    let mut names = DataDescription::new();
    names.define(vec![0; 8 * PLANETS.len()].into_boxed_slice());
    for (at, name) in PLANETS.iter().enumerate() {
        let text = maker.bytes(&format!("planet.{at}"), [name.as_bytes(), b"\0"].concat())?;
        let text = maker.module.declare_data_in_data(text, &mut names);
        names.write_data_addr(8 * at as u32, text, 0);
    }
    let names = maker.data("planets", false, &names)?;
    let other = maker.bytes("planet.other", b"none\0".to_vec())?;
    let strlen = maker.import("strlen", &[I64], Some(I64))?;
    let memcpy = maker.import("memcpy", &[I64, I64, I64], Some(I64))?;
    maker.function("planet", Linkage::Export, &[I32, I64], Some(I64), |body, of| {
        let [known, unknown, found] = [&[][..], &[], &[I64]].map(|kinds| body.block(kinds));
        let count = body.number(I32, PLANETS.len() as i64);
        let is_known = body.code.ins().icmp(IntCC::UnsignedLessThan, of[0], count);
        body.code.ins().brif(is_known, known, &[], unknown, &[]);
        body.begin(known);
        let (table, index) = (body.address(names), body.code.ins().uextend(I64, of[0]));
        let at = body.element(table, index, 3);
        let name = body.load(I64, at, 0);
        body.code.ins().jump(found, &[name.into()]);
        body.begin(unknown);
        let name = body.address(other);
        body.code.ins().jump(found, &[name.into()]);
        let name = body.begin(found)[0];
        let (strlen, memcpy) = (body.reference(strlen, false), body.reference(memcpy, false));
        let size = body.call(strlen, &[name]);
        body.call(memcpy, &[of[1], name, size]);
        Ok(Some(size))
    })?;
    Ok(())
}

fn fibonacci(maker: &mut Maker) -> Made<()> {
    let signature = maker.signature(&[I32], Some(I32));
    maker.function("fibonacci", Linkage::Export, &[I32], Some(I32), |body, of| {
        let [deeper, done] = [&[][..], &[I32]].map(|kinds| body.block(kinds));
        let [one, two] = [1, 2].map(|n| body.number(I32, n));
        let is_small = body.code.ins().icmp(IntCC::UnsignedLessThan, of[0], two);
        body.code.ins().brif(is_small, done, &[of[0].into()], deeper, &[]);
        body.begin(deeper);
        let own = body.own("fibonacci", &signature)?;
        let terms = [one, two].map(|less| {
            let n = body.code.ins().isub(of[0], less);
            body.call(own, &[n])
        });
        let sum = body.code.ins().iadd(terms[0], terms[1]);
        body.code.ins().jump(done, &[sum.into()]);
        Ok(Some(body.begin(done)[0]))
    })?;
    Ok(())
}

/// Four local functions, and a table of their addresses.
fn apply(maker: &mut Maker) -> Made<()> {
    let functions: [(&str, fn(&mut Body<'_, '_>, Value, Value) -> Value); 4] = [
        ("average", |body, a, b| {
            let (both, one_of, one) = (body.code.ins().band(a, b), body.code.ins().bxor(a, b), body.number(I64, 1));
            let half = body.code.ins().sshr(one_of, one);
            body.code.ins().iadd(both, half)
        }),
        ("difference", |body, a, b| body.code.ins().isub(a, b)),
        ("product", |body, a, b| body.code.ins().imul(a, b)),
        ("weighted", |body, a, b| {
            let [three, five] = [3, 5].map(|n| body.number(I64, n));
            let (a, b) = (body.code.ins().imul(a, three), body.code.ins().imul(b, five));
            body.code.ins().iadd(a, b)
        }),
    ];
    let mut table = DataDescription::new();
    table.define(vec![0; 8 * functions.len()].into_boxed_slice());
    for (at, (name, function)) in functions.into_iter().enumerate() {
        let id: FuncId = maker.function(name, Linkage::Local, &[I64, I64], Some(I64), |body, of| {
            Ok(Some(function(body, of[0], of[1])))
        })?;
        let reference = maker.module.declare_func_in_data(id, &mut table);
        table.write_function_addr(8 * at as u32, reference);
    }
    let table: DataId = maker.data("operations", false, &table)?;
    let signature = maker.signature(&[I64, I64], Some(I64));
    maker.function("apply", Linkage::Export, &[I32, I64, I64], Some(I64), |body, of| {
        let (base, mask) = (body.address(table), body.number(I32, 3));
        let index = body.code.ins().band(of[0], mask);
        let index = body.code.ins().uextend(I64, index);
        let at = body.element(base, index, 3);
        let (callee, signature) = (body.load(I64, at, 0), body.code.import_signature(signature));
        let call = body.code.ins().call_indirect(signature, callee, &[of[1], of[2]]);
        Ok(Some(body.code.inst_results(call)[0]))
    })?;
    Ok(())
}

/// Data that is changed: one with a value, one of zeros.
fn bump(maker: &mut Maker) -> Made<()> {
    let mut count = DataDescription::new();
    count.define(1000_i64.to_le_bytes().into());
    let count = maker.data("count", true, &count)?;
    let mut calls = DataDescription::new();
    calls.define_zeroinit(8);
    let calls = maker.data("calls", true, &calls)?;
    maker.function("bump", Linkage::Export, &[I64], Some(I64), |body, of| {
        let (count, calls, one) = (body.address(count), body.address(calls), body.number(I64, 1));
        let made = body.load(I64, calls, 0);
        let made = body.code.ins().iadd(made, one);
        body.store(made, calls, 0);
        let before = body.load(I64, count, 0);
        let sum = body.code.ins().iadd(before, of[0]);
        let twice = body.code.ins().ishl(sum, one);
        let after = body.code.ins().iadd(twice, made);
        body.store(after, count, 0);
        Ok(Some(after))
    })?;
    Ok(())
}

fn polynomial(maker: &mut Maker) -> Made<()> {
    let constants = maker.bytes("coefficients", COEFFICIENTS.iter().flat_map(|it| it.to_le_bytes()).collect())?;
    maker.function("polynomial", Linkage::Export, &[F64], Some(F64), |body, of| {
        let (base, start, none) = (body.address(constants), body.number(I64, 0), body.code.ins().f64const(0.0));
        let n = body.number(I64, COEFFICIENTS.len() as i64);
        let (_, sums) = body.count(n, 1, (start, &[(F64, none)]), |body, index, sums| {
            let at = body.element(base, index, 3);
            let constant = body.load(F64, at, 0);
            let product = body.code.ins().fmul(sums[0], of[0]);
            vec![body.code.ins().fadd(product, constant)]
        });
        Ok(Some(sums[0]))
    })?;
    Ok(())
}

fn hypotenuse(maker: &mut Maker) -> Made<()> {
    maker.function("hypotenuse", Linkage::Export, &[F64, F64], Some(F64), |body, of| {
        let squares = [of[0], of[1]].map(|it| body.code.ins().fmul(it, it));
        let sum = body.code.ins().fadd(squares[0], squares[1]);
        Ok(Some(body.code.ins().sqrt(sum)))
    })?;
    Ok(())
}

fn multiply_high(maker: &mut Maker) -> Made<()> {
    maker.function("multiply_high", Linkage::Export, &[I64, I64], Some(I64), |body, of| {
        Ok(Some(body.code.ins().umulhi(of[0], of[1])))
    })?;
    Ok(())
}

/// Unrolled, by vectors.
fn multiply4(maker: &mut Maker) -> Made<()> {
    maker.function("multiply4", Linkage::Export, &[I64, I64, I64], None, |body, of| {
        for row in 0..4 {
            let none = body.code.ins().f32const(0.0);
            let mut sum = body.code.ins().splat(F32X4, none);
            for at in 0..4 {
                let (a, b) = (body.load(F32, of[0], 16 * row + 4 * at), body.load(F32X4, of[1], 16 * at));
                let a = body.code.ins().splat(F32X4, a);
                let product = body.code.ins().fmul(a, b);
                sum = body.code.ins().fadd(sum, product);
            }
            body.store(sum, of[2], 16 * row);
        }
        Ok(None)
    })?;
    Ok(())
}

fn bits(maker: &mut Maker) -> Made<()> {
    maker.function("bits", Linkage::Export, &[I64], Some(I64), |body, of| {
        let [one, top, by, eight, sixteen] = [1, i64::MIN, 13, 8, 16].map(|n| body.number(I64, n));
        let swapped = body.code.ins().bswap(of[0]);
        let rotated = body.code.ins().rotl(swapped, by);
        let ones = body.code.ins().popcnt(of[0]);
        let (low, high) = (body.code.ins().bor(of[0], one), body.code.ins().bor(of[0], top));
        let (leading, trailing) = (body.code.ins().clz(low), body.code.ins().ctz(high));
        let (leading, trailing) = (body.code.ins().ishl(leading, eight), body.code.ins().ishl(trailing, sixteen));
        let sum = body.code.ins().bxor(rotated, ones);
        let sum = body.code.ins().bxor(sum, leading);
        Ok(Some(body.code.ins().bxor(sum, trailing)))
    })?;
    Ok(())
}
