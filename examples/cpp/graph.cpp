#include "graph.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>

#include "failure.hpp"
#include "metadata.hpp"

// ---- the library ---------------------------------------------------------------------------------------------------

Runtime::Runtime(const std::string& path) : library_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), dlclose) {
  const auto failed = [](const std::string& why) { return Failure(Exit::library, "onnxruntime: " + why); };
  if (path.empty()) throw failed("which library? give --onnxruntime /path/to/libonnxruntime.so.1.x");
  if (!library_) throw failed(dlerror());
  void* const symbol = dlsym(library_.get(), "OrtGetApiBase");
  if (!symbol) throw failed(path + " is another library: it has no OrtGetApiBase");
  const OrtApiBase* const base = reinterpret_cast<decltype(&OrtGetApiBase)>(symbol)();
  version_ = base->GetVersionString();
  const OrtApi* const api = base->GetApi(ORT_API_VERSION);
  if (!api) throw failed(path + " is " + version_ + ", and 1." + std::to_string(ORT_API_VERSION) + " or newer is needed");
  Ort::InitApi(api);
}

// ---- the graph -----------------------------------------------------------------------------------------------------

namespace {

Failure refused(const std::string& why) { return Failure(Exit::graph, why); }

Ort::Session open(const Ort::Env& environment, const std::string& path, int threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");  // idle threads leave the cores to the head
  try {
    return Ort::Session(environment, path.c_str(), options);
  } catch (const Ort::Exception& error) {
    throw refused(error.what());
  }
}

std::optional<std::string> metadata(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const Ort::AllocatedStringPtr text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
  return text ? std::optional<std::string>(text.get()) : std::nullopt;
}

struct Input {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<std::int64_t> shape;
};

std::vector<Input> inputs_of(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<Input> inputs;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    const Ort::TypeInfo type = session.GetInputTypeInfo(i);
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    inputs.push_back({session.GetInputNameAllocated(i, allocator).get(), tensor.GetElementType(), tensor.GetShape()});
  }
  return inputs;
}

// Whether the image input takes pixels.
bool check_inputs(const std::vector<Input>& inputs, const Spec& spec, const Preprocess& preprocess) {
  bool pixels = false;
  for (const Input& input : inputs) {
    if (input.name == spec.targets) continue;
    if (input.name != spec.image) throw refused("it takes \"" + input.name + "\" besides an image and a class");
    pixels = input.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    if (!pixels && input.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
      throw refused("its image is neither float nor uint8: export it with --preprocess");
    const std::array<size_t, 3> wanted = {preprocess.height, preprocess.width, pixels ? 3 : preprocess.channels.size()};
    const std::array<size_t, 3> axes = spec.channels_last ? std::array<size_t, 3>{1, 2, 3} : std::array<size_t, 3>{2, 3, 1};
    for (size_t i = 0; i < 3; ++i) {
      const std::int64_t size = input.shape.size() == 4 ? input.shape[axes[i]] : 0;
      if (size >= 0 && static_cast<size_t>(size) != wanted[i]) throw refused("its input has another shape than its metadata");
    }
  }
  return pixels;
}

// As `pycam.image.prepare`: (x - mean) / std in float, channels and layout as the model has them.
std::vector<float> normalised(const Picture& crop, const Preprocess& preprocess, bool channels_last) {
  const size_t area = crop.height * crop.width, count = preprocess.channels.size();
  std::vector<float> values(count * area);
  for (size_t q = 0; q < area; ++q) {
    const std::uint8_t* const rgb = crop.pixels.data() + 3 * q;
    for (size_t c = 0; c < count; ++c) {
      const int luma = (19595 * rgb[0] + 38470 * rgb[1] + 7471 * rgb[2] + 32768) >> 16;
      const int value = count == 1 ? luma : rgb[preprocess.channels == "BGR" ? 2 - c : c];
      values[channels_last ? count * q + c : c * area + q] =
          (static_cast<float>(value) - static_cast<float>(preprocess.mean[c])) / static_cast<float>(preprocess.std[c]);
    }
  }
  return values;
}

template <class T>
Ort::Value tensor(std::vector<T>& data, const std::vector<std::int64_t>& shape) {
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor<T>(memory, data.data(), data.size(), shape.data(), shape.size());
}

void expect(const Ort::Value& value, const std::string& name, ONNXTensorElementDataType type, size_t rank) {
  const auto found = value.GetTensorTypeAndShapeInfo();
  const std::vector<std::int64_t> shape = found.GetShape();
  if (found.GetElementType() != type || shape.size() != rank || found.GetElementCount() == 0 || shape[0] != 1)
    throw refused("its output \"" + name + "\" is not of the type and shape that an explain graph's has for one image");
}

// Probabilities; or the output as it is, where there is no second class to compare with.
std::vector<double> scores_of(const Ort::Value& value, bool probabilities) {
  const float* const data = value.GetTensorData<float>();
  std::vector<double> scores(data, data + value.GetTensorTypeAndShapeInfo().GetElementCount());
  if (probabilities || scores.size() == 1) return scores;
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - top);
  for (double& score : scores) score /= sum;
  return scores;
}

}  // namespace

ExplainGraph::ExplainGraph(const std::string& path, int threads)
    : environment_(ORT_LOGGING_LEVEL_ERROR, "pycam"), session_(open(environment_, path, threads)) {
  try {
    spec_ = read_spec(metadata(session_, "pycam.spec"));
    preprocess_ = read_preprocess(metadata(session_, "pycam.preprocess"));
    spec_.labels = read_labels(metadata(session_, "pycam.labels"));
    spec_.pixels = check_inputs(inputs_of(session_), spec_, preprocess_);
  } catch (const Failure& failure) {
    throw Failure(failure.code, path + ": " + failure.what());
  }
}

Answer ExplainGraph::explain(const Picture& photo, long long target) const {
  Answer answer{};
  answer.seen = crop_box(photo, preprocess_.height, preprocess_.width, preprocess_.share);
  Picture crop = resample(photo, answer.seen, preprocess_.height, preprocess_.width, preprocess_.filter);
  const auto rows = static_cast<std::int64_t>(crop.height), columns = static_cast<std::int64_t>(crop.width);
  const auto channels = static_cast<std::int64_t>(spec_.pixels ? 3 : preprocess_.channels.size());
  const std::vector<std::int64_t> shape = spec_.channels_last ? std::vector<std::int64_t>{1, rows, columns, channels}
                                                              : std::vector<std::int64_t>{1, channels, rows, columns};
  std::vector<float> values = spec_.pixels ? std::vector<float>() : normalised(crop, preprocess_, spec_.channels_last);
  std::vector<std::int64_t> targets = {target};
  Ort::Value image = spec_.pixels ? tensor(crop.pixels, shape) : tensor(values, shape);
  const std::array<Ort::Value, 2> inputs = {std::move(image), tensor(targets, {1, 1})};

  const std::array<const char*, 2> input_names = {spec_.image.c_str(), spec_.targets.c_str()};
  std::vector<const char*> names = {spec_.explained.c_str()};
  for (const std::string& name : spec_.maps) names.push_back(name.c_str());
  if (spec_.scored) names.push_back(spec_.score.c_str());

  const auto start = std::chrono::steady_clock::now();
  std::vector<Ort::Value> outputs =
      session_.Run(Ort::RunOptions(), input_names.data(), inputs.data(), inputs.size(), names.data(), names.size());
  answer.forward_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();

  if (spec_.scored) {
    expect(outputs.back(), spec_.score, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 2);
    answer.scores = scores_of(outputs.back(), spec_.probabilities);
  }
  expect(outputs[0], spec_.explained, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 2);
  answer.explained = *outputs[0].GetTensorData<std::int64_t>();
  for (size_t i = 0; i < spec_.maps.size(); ++i) {
    expect(outputs[1 + i], spec_.maps[i], ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4);
    answer.maps.push_back(std::move(outputs[1 + i]));
  }
  return answer;
}

std::string ExplainGraph::label(long long number) const {
  const auto i = static_cast<size_t>(number);
  return number >= 0 && i < spec_.labels.size() ? spec_.labels[i] : "class " + std::to_string(number);
}

long long ExplainGraph::class_of(const std::string& text) const {
  const auto found = std::find(spec_.labels.begin(), spec_.labels.end(), text);
  if (found != spec_.labels.end()) return found - spec_.labels.begin();
  if (!text.empty() && text.size() <= 9 && text.find_first_not_of("0123456789") == std::string::npos) {
    const long long number = std::stoll(text);
    if (!spec_.classes || number < *spec_.classes) return number;
    throw Failure(Exit::usage, "--class " + text + ": the model has " + std::to_string(*spec_.classes) + " classes");
  }
  std::string near;
  for (const std::string& label : spec_.labels)
    if (!text.empty() && label.find(text) != std::string::npos && near.size() < 100) near += (near.empty() ? "" : ", ") + label;
  throw Failure(Exit::usage, "--class " + text + ": no class is called that" + (near.empty() ? "" : "; nearest: " + near));
}
