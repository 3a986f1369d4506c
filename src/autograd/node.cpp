// A node of PyTorch's graph whose backward pass is written in Rust (mod.rs). Tensors cross as pointers to at::Tensor
// that the receiver owns, as in torch-sys; a null pointer is an undefined one.

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::variable_list;

extern "C" {
// Writes `count` gradients at the inputs, of those that are `needed`; where that failed, gives a message that `Free` takes
// back.
using Apply = char* (*)(void* state, Tensor* gradient, const bool* needed, Tensor** gradients, size_t count);
using Drop = void (*)(void* state);
using Free = void (*)(char* message);
}

namespace {

struct Foreign final : Node {
  Foreign(void* state, Apply run, Drop drop, Free free_message)
      : state(state), run(run), drop(drop), free_message(free_message) {}

  ~Foreign() override { release_variables(); }

  std::string name() const override { return "DivaBackward"; }

  void release_variables() override {
    if (void* held = std::exchange(state, nullptr)) drop(held);
  }

  variable_list apply(variable_list&& gradients) override {
    TORCH_CHECK(
        !at::GradMode::is_enabled(), "diva_rs: this gradient has no derivative of its own (create_graph=True)");
    TORCH_CHECK(state, "Trying to backward through the graph a second time: its tensors have been freed");
    const size_t count = next_edges().size();
    variable_list found(count);
    if (!gradients[0].defined()) return found;
    std::vector<Tensor*> raw(count, nullptr);
    auto needed = std::make_unique<bool[]>(count);
    for (size_t i = 0; i < count; ++i) needed[i] = task_should_compute_output(i);
    char* message = run(state, new Tensor(gradients[0]), needed.get(), raw.data(), count);
    for (size_t i = 0; i < count; ++i) {
      if (raw[i]) {
        found[i] = std::move(*raw[i]);
        delete raw[i];
      }
    }
    if (message) {
      std::string text(message);
      free_message(message);
      TORCH_CHECK(false, text);
    }
    return found;
  }

  void* state;
  Apply run;
  Drop drop;
  Free free_message;
};

// Nodes count their references themselves, or up to torch 2.12 a std::shared_ptr does.
template <class Kind, class... Arguments>
auto make_node(Arguments... arguments) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, Kind>) {
    return c10::make_intrusive<Kind>(arguments...);
  } else {
    return std::make_shared<Kind>(arguments...);
  }
}

}  // namespace

// Makes `output`, a tensor without history, depend on `inputs` through a node that owns `state` from here on; where no
// graph is being made, or no input requires a gradient, `state` is dropped. What went wrong as a message for
// `diva_free`, or null.
extern "C" char* diva_attach(
    Tensor* output, Tensor* const* inputs, size_t count, void* state, Apply apply, Drop drop, Free free_message) {
  auto node = make_node<Foreign>(state, apply, drop, free_message);
  try {
    bool any = false;
    torch::autograd::edge_list edges;
    for (size_t i = 0; i < count; ++i) {
      const bool requires_grad = inputs[i]->requires_grad();
      edges.push_back(requires_grad ? torch::autograd::impl::gradient_edge(*inputs[i]) : torch::autograd::Edge());
      any |= requires_grad;
    }
    if (!any || !at::GradMode::is_enabled()) return nullptr;
    node->set_next_edges(std::move(edges));
    torch::autograd::set_history(*output, node);
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
  return nullptr;
}

// Makes `gradient`, of any dtype, the `.grad` of a leaf; without one (null) the leaf has none.
extern "C" void diva_set_grad(Tensor* leaf, const Tensor* gradient) {
  leaf->mutable_grad() = gradient ? *gradient : Tensor();
}

extern "C" void diva_free(char* message) { free(message); }
