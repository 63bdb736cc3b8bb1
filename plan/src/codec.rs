//! Plans as bytes: `datafusion-proto` for DataFusion's operators, JSON under our prefix for ours.

use std::sync::Arc;

use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::bytes::{
    physical_plan_from_bytes_with_proto_converter, physical_plan_to_bytes_with_proto_converter,
};
use datafusion_proto::physical_plan::from_proto::parse_physical_expr_with_converter;
use datafusion_proto::physical_plan::to_proto::serialize_physical_expr_with_converter;
use datafusion_proto::physical_plan::{
    PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalPlanNodeExt,
    PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf::physical_plan_node::PhysicalPlanType;
use datafusion_proto::protobuf::{PhysicalExprNode, PhysicalPlanNode};
use prost::Message;
use serde::{Deserialize, Serialize};
use weir_spec::NodeName;

use crate::operators::{
    CountExec, ExchangeScanExec, MorselExec, SourceScan, SourceScanExec, ValidateExec,
    ValidateMode, ValidateRule,
};
use crate::{EncodedPlan, EncodedSchema, PlanError, StageId};

/// The same plan gives the same bytes.
pub fn encode_plan(plan: &Arc<dyn ExecutionPlan>) -> Result<EncodedPlan, PlanError> {
    physical_plan_to_bytes_with_proto_converter(Arc::clone(plan), &WeirCodec, &FrozenConverter)
        .map(|bytes| EncodedPlan(bytes.to_vec()))
        .map_err(|error| {
            // DataFusion appends the whole plan, which no one can read.
            let message = error.strip_backtrace();
            let reason = message.split(". Plan: ").next().unwrap_or(&message);
            PlanError::engine("failed to encode a plan", reason)
        })
}

/// The plan, ready to execute in a context made by [`crate::session::task_context`].
pub fn decode_plan(
    plan: &EncodedPlan,
    context: &TaskContext,
) -> Result<Arc<dyn ExecutionPlan>, PlanError> {
    physical_plan_from_bytes_with_proto_converter(&plan.0, context, &WeirCodec, &FrozenConverter)
        .map_err(|error| PlanError::engine("failed to decode a plan", error))
}

const PREFIX: &[u8] = b"weir1:";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "lives only while an operator is encoded")]
enum OperatorBytes {
    Source {
        scan: SourceScan,
        schema: EncodedSchema,
    },
    Exchange {
        stage: StageId,
        partitions: usize,
        projection: Option<Vec<usize>>,
        schema: EncodedSchema,
    },
    Morsel {
        projection: Option<Vec<usize>>,
        schema: EncodedSchema,
    },
    Validate {
        node: NodeName,
        mode: ValidateMode,
        rules: Vec<RuleBytes>,
    },
    Count {
        out_of: Option<NodeName>,
        into: Option<NodeName>,
    },
}

#[derive(Serialize, Deserialize)]
struct RuleBytes {
    reason: String,
    passes: EncodedPlan,
}

#[derive(Debug)]
struct WeirCodec;

impl PhysicalExtensionCodec for WeirCodec {
    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buffer: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let schema = || EncodedSchema::encode(&node.schema()).map_err(external);
        let operator = if let Some(source) = node.downcast_ref::<SourceScanExec>() {
            OperatorBytes::Source { scan: source.scan().clone(), schema: schema()? }
        } else if let Some(exchange) = node.downcast_ref::<ExchangeScanExec>() {
            OperatorBytes::Exchange {
                stage: exchange.stage,
                partitions: exchange.partitions,
                projection: exchange.projection.clone(),
                schema: schema()?,
            }
        } else if let Some(morsel) = node.downcast_ref::<MorselExec>() {
            OperatorBytes::Morsel { projection: morsel.projection.clone(), schema: schema()? }
        } else if let Some(validate) = node.downcast_ref::<ValidateExec>() {
            let rules = validate
                .rules()
                .iter()
                .map(|rule| {
                    let passes = converter.physical_expr_to_proto(&rule.passes, self)?;
                    Ok(RuleBytes {
                        reason: rule.reason.clone(),
                        passes: EncodedPlan(passes.encode_to_vec()),
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            OperatorBytes::Validate { node: validate.node().clone(), mode: validate.mode(), rules }
        } else if let Some(count) = node.downcast_ref::<CountExec>() {
            OperatorBytes::Count { out_of: count.out_of.clone(), into: count.into.clone() }
        } else {
            return internal_err!("operator {} cannot be encoded", node.name());
        };
        buffer.extend_from_slice(PREFIX);
        serde_json::to_writer(buffer, &operator).map_err(external)
    }

    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(json) = bytes.strip_prefix(PREFIX) else {
            return internal_err!("an operator of another engine cannot be decoded");
        };
        let input = || match inputs {
            [input] => Ok(Arc::clone(input)),
            _ => internal_err!("an operator with one input was encoded with {}", inputs.len()),
        };
        let operator: OperatorBytes = serde_json::from_slice(json).map_err(external)?;
        Ok(match operator {
            OperatorBytes::Source { scan, schema } => {
                Arc::new(SourceScanExec::new(scan, schema.decode().map_err(external)?))
            }
            OperatorBytes::Exchange { stage, partitions, projection, schema } => {
                let schema = schema.decode().map_err(external)?;
                Arc::new(ExchangeScanExec::new(stage, partitions, projection, schema))
            }
            OperatorBytes::Morsel { projection, schema } => {
                Arc::new(MorselExec::new(projection, schema.decode().map_err(external)?))
            }
            OperatorBytes::Validate { node, mode, rules } => {
                let input = input()?;
                let decode_context = PhysicalPlanDecodeContext::new(context, self);
                let rules = rules
                    .into_iter()
                    .map(|rule| {
                        let proto =
                            PhysicalExprNode::decode(rule.passes.0.as_slice()).map_err(external)?;
                        let passes = converter.proto_to_physical_expr(
                            &proto,
                            &input.schema(),
                            &decode_context,
                        )?;
                        Ok(ValidateRule { reason: rule.reason, passes })
                    })
                    .collect::<Result<Vec<_>>>()?;
                Arc::new(ValidateExec::new(node, mode, rules, input))
            }
            OperatorBytes::Count { out_of, into } => {
                Arc::new(CountExec::new(out_of, into, input()?))
            }
        })
    }
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// DataFusion's converter without what differs each time that a plan is made: sorts with a limit,
/// joins and aggregates carry a dynamic filter with a random id, which we have switched off.
struct FrozenConverter;

impl PhysicalProtoConverterExtension for FrozenConverter {
    fn proto_to_execution_plan(
        &self,
        proto: &PhysicalPlanNode,
        context: &PhysicalPlanDecodeContext<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        proto.try_into_physical_plan_with_context(context, self)
    }

    fn execution_plan_to_proto(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        codec: &dyn PhysicalExtensionCodec,
    ) -> Result<PhysicalPlanNode> {
        let mut node =
            PhysicalPlanNode::try_from_physical_plan_with_converter(Arc::clone(plan), codec, self)?;
        match &mut node.physical_plan_type {
            Some(PhysicalPlanType::Sort(sort)) => sort.dynamic_filter = None,
            Some(PhysicalPlanType::HashJoin(join)) => join.dynamic_filter = None,
            Some(PhysicalPlanType::Aggregate(aggregate)) => aggregate.dynamic_filter = None,
            _ => {}
        }
        Ok(node)
    }

    fn proto_to_physical_expr(
        &self,
        proto: &PhysicalExprNode,
        input_schema: &arrow::datatypes::Schema,
        context: &PhysicalPlanDecodeContext<'_>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        parse_physical_expr_with_converter(proto, input_schema, context, self)
    }

    fn physical_expr_to_proto(
        &self,
        expression: &Arc<dyn PhysicalExpr>,
        codec: &dyn PhysicalExtensionCodec,
    ) -> Result<PhysicalExprNode> {
        serialize_physical_expr_with_converter(expression, codec, self)
    }
}
