// libtorch's operations over lists of tensors, a few kernels for all of them, which tch does not have (lists.rs). Each
// returns what went wrong as a message for `diva_free`, or null.

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>

#include <cstring>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

using at::Tensor;

namespace {

using List = Tensor* const*;

std::vector<Tensor> list(List tensors, size_t count) {
  std::vector<Tensor> made;
  made.reserve(count);
  for (size_t i = 0; i < count; ++i) made.push_back(*tensors[i]);
  return made;
}

std::optional<Tensor> optional(const Tensor* tensor) {
  return tensor ? std::optional<Tensor>(*tensor) : std::nullopt;
}

// Counts a change of each tensor for autograd, as the fused kernels do not.
void changed(List tensors, size_t count) {
  for (size_t i = 0; i < count; ++i) tensors[i]->unsafeGetTensorImpl()->bump_version();
}

template <class Work>
char* guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}

}  // namespace

// The 2-norm of each tensor, float32 or better, as tensors that the caller owns.
extern "C" char* diva_norms(List tensors, size_t count, Tensor** norms) {
  return guarded([&] {
    const bool narrow = count > 0 && tensors[0]->scalar_type() == at::kBFloat16;
    const auto kind = narrow ? std::optional(at::kFloat) : std::nullopt;
    auto found = at::_foreach_norm(list(tensors, count), 2, kind);
    for (size_t i = 0; i < count; ++i) norms[i] = new Tensor(std::move(found[i]));
  });
}

// Overwrites each tensor of `to` by its counterpart.
extern "C" char* diva_copy(List to, List from, size_t count) {
  return guarded([&] {
    if (count > 0) at::_foreach_copy_(list(to, count), list(from, count));
  });
}

// Multiplies all tensors by a 0-dim one.
extern "C" char* diva_scale(List tensors, size_t count, const Tensor* factor) {
  return guarded([&] { at::_foreach_mul_(list(tensors, count), *factor); });
}

// torch.optim.SGD(fused=True). `buffers` is null without momentum. `skip` (0-dim float32), where given and 1, leaves
// everything as it is.
extern "C" char* diva_sgd(
    List params, List grads, List buffers, size_t count, double lr, double weight_decay, double momentum,
    const Tensor* skip) {
  return guarded([&] {
    if (count == 0 || params[0]->is_meta()) return;  // libtorch has no meta kernel for it
    at::_fused_sgd_(
        list(params, count), list(grads, count), list(buffers, buffers ? count : 0), weight_decay, momentum, lr,
        /*dampening=*/0.0, /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false,
        /*grad_scale=*/{}, optional(skip));
    changed(params, count);
  });
}

// torch.optim.AdamW(fused=True). `steps`: the count of updates of each parameter, this one included (0-dim float32).
extern "C" char* diva_adamw(
    List params, List grads, List exp_avgs, List exp_avg_sqs, List steps, size_t count, double lr, double weight_decay,
    double beta1, double beta2, double eps, const Tensor* skip) {
  return guarded([&] {
    at::_fused_adamw_(
        list(params, count), list(grads, count), list(exp_avgs, count), list(exp_avg_sqs, count), {},
        list(steps, count), lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false,
        /*grad_scale=*/{}, optional(skip));
    changed(params, count);
  });
}
