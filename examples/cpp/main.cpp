// An edge service: explains photos with an explain graph that `pycam export` made, without Python.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <numeric>

#include "failure.hpp"
#include "json.hpp"
#include "options.hpp"

namespace {

struct Explained {
  Answer answer;
  std::vector<long long> classes;  // to be printed, best first
  std::filesystem::path overlay;   // "": not wanted
  Painted painted;
};

std::vector<long long> best(const std::vector<double>& scores, int count) {
  std::vector<long long> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(order.size()));
  const auto better = [&](long long a, long long b) {
    const double left = scores[static_cast<size_t>(a)], right = scores[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
  std::partial_sort(order.begin(), end, order.end(), better);
  order.erase(end, order.end());
  return order;
}

Explained explain(const ExplainGraph& graph, const Options& options, long long target, const std::filesystem::path& path) {
  Picture photo = read_picture(path);
  Explained explained{graph.explain(photo, target), {}, overlay_path(options, path), {}};
  explained.classes = best(explained.answer.scores, options.top);
  explained.painted = paint(photo, explained.answer, options.look, options.threads);
  if (!explained.overlay.empty()) write_picture(explained.overlay, photo);
  return explained;
}

// ---- answers -------------------------------------------------------------------------------------------------------

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

std::string class_json(const ExplainGraph& graph, const Answer& answer, long long index) {
  std::string json = "\"class\": " + std::to_string(index) + ", \"label\": " + json_string(graph.label(index));
  const auto i = static_cast<size_t>(index);
  return json + ", \"score\": " + (i < answer.scores.size() ? number(answer.scores[i]) : "null");
}

std::string as_json(const ExplainGraph& graph, const std::filesystem::path& photo, const Explained& explained) {
  std::string top;
  for (const long long index : explained.classes)
    top += (top.empty() ? "{" : ", {") + class_json(graph, explained.answer, index) + "}";
  return "{\"file\": " + json_string(photo.string()) + ", " + class_json(graph, explained.answer, explained.answer.explained) +
         ", \"top\": [" + top + "], \"flat\": " + (explained.painted.flat ? "true" : "false") +
         ", \"overlay\": " + (explained.overlay.empty() ? "null" : json_string(explained.overlay.string())) +
         ", \"forward_ms\": " + number(explained.answer.forward_ms) +
         ", \"head_ms\": " + number(explained.painted.head_ms) + "}";
}

std::string as_text(const ExplainGraph& graph, const std::filesystem::path& photo, const Explained& explained) {
  const Answer& answer = explained.answer;
  std::string text = photo.string();
  char line[64];
  for (const long long index : explained.classes) {
    const double score = answer.scores[static_cast<size_t>(index)];
    std::snprintf(line, sizeof line, answer.scores.size() > 1 ? "\n  %5.1f%%  " : "\n  %g  ",
                  answer.scores.size() > 1 ? 100 * score : score);
    text += line + graph.label(index);
  }
  text += "\n  explained: " + graph.label(answer.explained) + ", method " + graph.spec().method;
  if (explained.painted.flat) text += "\n  the map is flat: nothing in the picture spoke for this class";
  std::snprintf(line, sizeof line, "\n  forward %.2f ms, head %.2f ms", answer.forward_ms, explained.painted.head_ms);
  text += line;
  return explained.overlay.empty() ? text : text + "\n  wrote " + explained.overlay.string();
}

// Whether standard output still takes lines.
bool say(const std::string& line) { return std::puts(line.c_str()) >= 0 && std::fflush(stdout) == 0; }

// One photo, one answer: a photo that cannot be explained does not end the service.
Exit serve(const ExplainGraph& graph, const Options& options, long long target, const std::filesystem::path& photo) {
  const auto failed = [&](Exit code, const std::string& why) {
    if (!options.json) std::fprintf(stderr, "pycam_edge: %s\n", why.c_str());
    const std::string line = "{\"file\": " + json_string(photo.string()) + ", \"error\": " + json_string(why) + "}";
    return options.json && !say(line) ? Exit::output : code;
  };
  try {
    const Explained explained = explain(graph, options, target, photo);
    return say((options.json ? as_json : as_text)(graph, photo, explained)) ? Exit::fine : Exit::output;
  } catch (const Failure& failure) {
    return failed(failure.code, failure.what());
  } catch (const std::exception& error) {  // of onnxruntime, or memory
    return failed(Exit::unforeseen, photo.string() + ": " + error.what());
  }
}

Exit run(const Options& options) {
  const Runtime runtime(options.onnxruntime);
  const ExplainGraph graph(options.graph, options.threads);
  const long long target = options.target.empty() ? -1 : graph.class_of(options.target);
  if (options.serve) graph.explain({1, 1, Bytes(3)}, target);  // onnxruntime's first run is slow: not the first photo's
  Exit last = Exit::fine;
  for (const std::filesystem::path& photo : options.photos)
    if (const Exit code = serve(graph, options, target, photo); code != Exit::fine) last = code;
  if (!options.serve) return last;
  for (std::string line; std::getline(std::cin, line);)
    if (!line.empty()) serve(graph, options, target, line);
  return std::ferror(stdout) ? Exit::output : Exit::fine;
}

}  // namespace

int main(int count, char** values) {
  Exit code = Exit::unforeseen;
  try {
    const Options options = parse_options({values + 1, values + count});
    if (options.help) return say(USAGE) ? 0 : static_cast<int>(Exit::output);
    code = run(options);
  } catch (const Failure& failure) {
    std::fprintf(stderr, "pycam_edge: %s\n", failure.what());
    code = failure.code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pycam_edge: %s\n", error.what());
  }
  return static_cast<int>(code);
}
