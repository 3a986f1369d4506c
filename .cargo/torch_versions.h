// torch-sys is generated for torch 2.13. Other versions lack functions that it names. diva-rs calls none of
// them: here they raise.
#if defined(__cplusplus) && __has_include(<torch/version.h>)
#include <torch/version.h>

#if TORCH_VERSION_MAJOR != 2 || TORCH_VERSION_MINOR < 9 || TORCH_VERSION_MINOR > 15
#error "diva-rs builds against torch 2.9 to 2.15. Install one of them: pip install 'torch>=2.9,<2.16'"
#endif

#include <ATen/core/Tensor.h>
#include <stdexcept>
#include <tuple>

#define DIVA_LACKING(TYPE, NAME)                                              \
  template <class... Arguments>                                               \
  TYPE NAME(Arguments&&...) {                                                 \
    throw std::runtime_error(#NAME " is not in torch " TORCH_VERSION);        \
  }
using DivaTwo = std::tuple<at::Tensor, at::Tensor>;

namespace torch {
#if TORCH_VERSION_MINOR >= 14
DIVA_LACKING(at::Tensor, cholesky)
DIVA_LACKING(at::Tensor, cholesky_out)
DIVA_LACKING(DivaTwo, qr)
DIVA_LACKING(DivaTwo, qr_out)
#endif
#if TORCH_VERSION_MINOR <= 11
DIVA_LACKING(at::Tensor, _flash_attention_forward_no_dropout_inplace)
DIVA_LACKING(at::Tensor, _philox_key_fold_in)
DIVA_LACKING(at::Tensor, _philox_key_split)
DIVA_LACKING(at::Tensor, _philox_normal)
DIVA_LACKING(at::Tensor, _philox_normal_)
DIVA_LACKING(at::Tensor, _philox_normal_out)
DIVA_LACKING(at::Tensor, _philox_uniform)
DIVA_LACKING(at::Tensor, _philox_uniform_)
DIVA_LACKING(at::Tensor, _philox_uniform_out)
DIVA_LACKING(DivaTwo, _scaled_dot_product_attention_math_for_mps)
DIVA_LACKING(at::Tensor, _upsample_lanczos2d_aa)
DIVA_LACKING(at::Tensor, _upsample_lanczos2d_aa_backward)
DIVA_LACKING(at::Tensor, _upsample_lanczos2d_aa_backward_out)
DIVA_LACKING(at::Tensor, _upsample_lanczos2d_aa_out)
#endif
#if TORCH_VERSION_MINOR <= 9
DIVA_LACKING(at::Tensor, _scaled_grouped_mm_v2)
DIVA_LACKING(at::Tensor, _scaled_mm_v2)
DIVA_LACKING(at::Tensor, _scaled_mm_v2_out)
#endif
#if TORCH_VERSION_MINOR <= 10
DIVA_LACKING(DivaTwo, miopen_ctc_loss)
DIVA_LACKING(DivaTwo, miopen_ctc_loss_out)
DIVA_LACKING(bool, _use_miopen_ctc_loss)
#endif
} // namespace torch
#endif
