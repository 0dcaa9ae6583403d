//! A module, and functions of it.

use std::error::Error;

use cranelift_codegen::ir::{
    AbiParam, Block, FuncRef, InstBuilder as _, Signature, Type, UserFuncName, Value, types::I64,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module as _};
use cranelift_object::ObjectModule;

pub(crate) type Made<T> = Result<T, Box<dyn Error>>;

/// What makes functions.
pub(crate) struct Maker {
    pub(crate) module: ObjectModule,
    /// Whether its own functions are called as near.
    colocated: bool,
    context: FunctionBuilderContext,
}

impl Maker {
    pub(crate) fn new(module: ObjectModule, colocated: bool) -> Self {
        Self { module, colocated, context: FunctionBuilderContext::new() }
    }

    pub(crate) fn signature(&self, parameters: &[Type], result: Option<Type>) -> Signature {
        let mut signature = self.module.make_signature();
        signature.params = parameters.iter().map(|&it| AbiParam::new(it)).collect();
        signature.returns = result.into_iter().map(AbiParam::new).collect();
        signature
    }

    /// A function of another object.
    pub(crate) fn import(&mut self, name: &str, parameters: &[Type], result: Option<Type>) -> Made<FuncId> {
        let signature = self.signature(parameters, result);
        Ok(self.module.declare_function(name, Linkage::Import, &signature)?)
    }

    /// Defines a function: `body` gets its block and parameters, and answers what it returns from where it ended.
    pub(crate) fn function(
        &mut self,
        name: &str,
        linkage: Linkage,
        parameters: &[Type],
        result: Option<Type>,
        body: impl FnOnce(&mut Body<'_, '_>, &[Value]) -> Made<Option<Value>>,
    ) -> Made<FuncId> {
        let signature = self.signature(parameters, result);
        let id = self.module.declare_function(name, linkage, &signature)?;
        let mut context = self.module.make_context();
        context.func.signature = signature;
        context.func.name = UserFuncName::user(0, id.as_u32());
        let mut builder = FunctionBuilder::new(&mut context.func, &mut self.context);
        let entry = builder.create_block();
        builder.append_block_params_for_function_params(entry);
        builder.switch_to_block(entry);
        let parameters = builder.block_params(entry).to_vec();
        let mut body_of = Body { code: builder, module: &mut self.module, colocated: self.colocated };
        let value = body(&mut body_of, &parameters)?;
        let Body { code: mut builder, .. } = body_of;
        builder.ins().return_(value.as_slice());
        builder.seal_all_blocks();
        builder.finalize(self.module.target_config());
        self.module.define_function(id, &mut context)?;
        Ok(id)
    }

    /// Defines data, with addresses in it.
    pub(crate) fn data(&mut self, name: &str, writable: bool, description: &DataDescription) -> Made<DataId> {
        let id = self.module.declare_data(name, Linkage::Local, writable, false)?;
        self.module.define_data(id, description)?;
        Ok(id)
    }

    pub(crate) fn bytes(&mut self, name: &str, bytes: Vec<u8>) -> Made<DataId> {
        let mut description = DataDescription::new();
        description.define(bytes.into_boxed_slice());
        description.set_align(16);
        self.data(name, false, &description)
    }

    pub(crate) fn finish(self) -> Made<Vec<u8>> {
        Ok(self.module.finish().emit()?)
    }
}

/// The body of a function in the making.
pub(crate) struct Body<'a, 'b> {
    pub(crate) code: FunctionBuilder<'a>,
    module: &'b mut ObjectModule,
    colocated: bool,
}

impl Body<'_, '_> {
    /// The address of data.
    pub(crate) fn address(&mut self, data: DataId) -> Value {
        let global = self.module.declare_data_in_func(data, self.code.func);
        self.code.ins().symbol_value(I64, global)
    }

    /// A reference to a function, its own or another object's.
    pub(crate) fn reference(&mut self, function: FuncId, is_own: bool) -> FuncRef {
        let reference = self.module.declare_func_in_func(function, self.code.func);
        self.code.func.dfg.ext_funcs[reference].colocated = is_own && self.colocated;
        reference
    }

    /// Calls a function that answers one value.
    pub(crate) fn call(&mut self, function: FuncRef, arguments: &[Value]) -> Value {
        let call = self.code.ins().call(function, arguments);
        self.code.inst_results(call)[0]
    }

    /// This function itself.
    pub(crate) fn own(&mut self, name: &str, signature: &Signature) -> Made<FuncRef> {
        let id = self.module.declare_function(name, Linkage::Export, signature)?;
        Ok(self.reference(id, true))
    }

    pub(crate) fn block(&mut self, parameters: &[Type]) -> Block {
        let block = self.code.create_block();
        for &parameter in parameters {
            self.code.append_block_param(block, parameter);
        }
        block
    }

    /// Goes on in `block`; answers its parameters.
    pub(crate) fn begin(&mut self, block: Block) -> Vec<Value> {
        self.code.switch_to_block(block);
        self.code.block_params(block).to_vec()
    }
}
