// The metadata of an explain graph: what pycam/runtime/spec.py and pycam/preprocess.py have written.
#include "metadata.hpp"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "failure.hpp"
#include "json.hpp"

namespace {

Failure refused(const std::string& why) { return Failure(Exit::graph, why); }

template <class Read>
auto parsed(const char* key, const std::string& text, const Read& read) {
  try {
    return read(Json::parse(text));
  } catch (const std::invalid_argument& error) {
    throw refused(std::string(key) + " in its metadata cannot be read: " + error.what());
  }
}

std::vector<std::string> texts(const Json& list) {
  std::vector<std::string> found;
  for (const Json& item : list.list()) found.push_back(item.text());
  return found;
}

// Raw maps, which a head makes better heatmaps of at the photo's size; where theirs are made otherwise than by
// pycam_finish, the graph's own heatmaps: a heatmap is a raw map of which nothing is below zero.
std::vector<std::string> maps_of(const Json& json) {
  const std::vector<std::string> raw = texts(json["raw"]);
  const bool usual = !json["levels"].boolean() && (raw.size() == 1 || json["combine"].text() == "mean");
  if (usual && !raw.empty()) return raw;
  if (json["heatmaps"].null())
    throw refused("its raw maps need the graph's own head: export it with --outputs scores,heatmaps");
  return {json["heatmaps"].text()};
}

Spec spec_in(const Json& json) {
  const std::string layout = json["layout"].text(), target = json["target"].text();
  static const std::string kinds[] = {"class", "probability", "log_odds", "one_vs_rest"};
  if (std::find(std::begin(kinds), std::end(kinds), target) == std::end(kinds))
    throw refused("it explains a " + target + ", and this program knows classes of whole images only");
  if (layout != "NCHW" && layout != "NHWC") throw refused("its input lies as " + layout + ", which is no picture");
  if (!json["recipe"].null()) throw refused("it is one stage of several, which need the driver of docs/stages.md");

  Spec spec{};
  spec.method = json["method"].text();
  spec.image = json["image"].text();
  spec.targets = json["targets"].text();
  spec.explained = json["explained"].text();
  spec.score = json["score"].text();
  const std::vector<std::string> outputs = texts(json["outputs"]);
  spec.scored = std::find(outputs.begin(), outputs.end(), spec.score) != outputs.end();
  spec.maps = maps_of(json);
  spec.channels_last = layout == "NHWC";
  spec.probabilities = json["probabilities"].boolean();
  if (!json["classes"].null()) spec.classes = static_cast<long long>(json["classes"].number());
  return spec;
}

Preprocess preprocess_in(const Json& json) {
  Preprocess found{};
  const std::vector<Json>& size = json["size"].list();
  found.channels = json["channels"].text();
  found.share = json["crop"].number();
  const std::string filter = json["resample"].text();
  found.filter = filter == "bicubic" ? Filter::bicubic : Filter::bilinear;
  for (const Json& number : json["mean"].list()) found.mean.push_back(number.number());
  for (const Json& number : json["std"].list()) found.std.push_back(number.number());

  const size_t count = found.channels.size();
  const auto side = [](const Json& number) { return number.number() >= 1 && number.number() <= 65536; };
  const auto check = [](bool sound, const std::string& otherwise) {
    if (!sound) throw std::invalid_argument(otherwise);
  };
  check(found.channels == "RGB" || found.channels == "BGR" || found.channels == "L", "unknown channels");
  check(size.size() == 2 && side(size[0]) && side(size[1]), "size is not two positive numbers");
  check(filter == "bicubic" || filter == "bilinear", "unknown resample \"" + filter + "\"");
  check(found.mean.size() == count && found.std.size() == count, "mean or std is not one per channel");
  check(found.share > 0 && found.share <= 1, "crop is not in (0, 1]");
  found.height = static_cast<size_t>(size[0].number());
  found.width = static_cast<size_t>(size[1].number());
  return found;
}

}  // namespace

Spec read_spec(const std::optional<std::string>& text) {
  if (!text) throw refused("it is no explain graph: make one of a model with `pycam export`");
  return parsed("pycam.spec", *text, spec_in);
}

Preprocess read_preprocess(const std::optional<std::string>& text) {
  if (!text)
    throw refused("it does not say how a photo becomes its input: give the model's metadata pycam.preprocess, then export it");
  return parsed("pycam.preprocess", *text, preprocess_in);
}

std::vector<std::string> read_labels(const std::optional<std::string>& text) {
  std::vector<std::string> labels;
  std::istringstream lines(text.value_or(""));
  for (std::string line; std::getline(lines, line);) labels.push_back(line);
  return labels;
}
