//! What the library must know of torch, when somebody else has imported it.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::owner::loaded_module;

/// Gradients are recorded, as torch starts out.
const RECORDING: u8 = 0;
/// `torch.no_grad()`.
const NO_GRAD: u8 = 1;
/// `torch.inference_mode()`.
const INFERENCE: u8 = 2;

/// The grad mode of this thread: torch keeps one per thread, so that a worker must be told.
pub(super) fn grad_mode(py: Python<'_>) -> PyResult<u8> {
    static ASK: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    let (is_inference, is_grad) = match ASK.get(py) {
        Some(ask) => ask,
        None => {
            let Some(torch) = loaded_module(py, intern!(py, "torch"))? else {
                return Ok(RECORDING);
            };
            // Another thread may be in the middle of importing it.
            let inference = torch.getattr_opt(intern!(py, "is_inference_mode_enabled"))?;
            let grad = torch.getattr_opt(intern!(py, "is_grad_enabled"))?;
            let (Some(inference), Some(grad)) = (inference, grad) else { return Ok(RECORDING) };
            ASK.get_or_init(py, || (inference.unbind(), grad.unbind()))
        }
    };
    if is_grad.bind(py).call0()?.is_truthy()? {
        return Ok(RECORDING);
    }
    Ok(if is_inference.bind(py).call0()?.is_truthy()? { INFERENCE } else { NO_GRAD })
}
