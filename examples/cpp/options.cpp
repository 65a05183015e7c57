#include "options.hpp"

#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>
#include <type_traits>

#include "failure.hpp"

namespace fs = std::filesystem;

#ifndef DEFAULT_ONNXRUNTIME
#define DEFAULT_ONNXRUNTIME ""
#endif

const char* const USAGE =
    "usage: pycam_edge [options] explain.onnx photo…\n"
    "       pycam_edge [options] --serve explain.onnx        file names on standard input, an answer in JSON for each\n"
    "\n"
    "  -o, --output PATH     write the overlay to this file (.ppm, .jpg), or overlays into this folder\n"
    "  --class N|LABEL       explain this class (default: the top one)\n"
    "  --alpha A             opacity of the heatmap's colours, 0 to 1 (default: 0.5)\n"
    "  --colormap NAME       jet, turbo, viridis, inferno, magma or gray (default: jet)\n"
    "  --top N               print so many classes (default: 5)\n"
    "  --threads N           for the model and for the head (default: 1)\n"
    "  --json                answers as with --serve\n"
    "  --onnxruntime PATH    libonnxruntime.so.1.x (default: $ONNXRUNTIME_LIBRARY, else the one found when this was built)\n";

namespace {

Failure wrong(const std::string& why) { return Failure(Exit::usage, why); }

template <class Number>
Number number(const std::string& name, const std::string& text, Number low, Number high) {
  char* end = nullptr;
  const double found = std::strtod(text.c_str(), &end);
  const bool within = !text.empty() && *end == '\0' && found >= low && found <= high;
  if (within && static_cast<double>(static_cast<Number>(found)) == found) return static_cast<Number>(found);
  std::ostringstream expected;
  expected << (std::is_integral_v<Number> ? "a whole number" : "a number") << " from " << low << " to " << high;
  throw wrong(name + " " + text + ": expected " + expected.str());
}

void check(const Options& options) {
  if (options.graph.empty()) throw wrong("which explain graph?");
  if (options.serve == !options.photos.empty())
    throw wrong(options.serve ? "--serve reads file names from standard input, not from the command line" : "which photo?");
  check_look(options.look);
  if (options.output.empty() || fs::is_directory(options.output)) return;
  if (options.serve || options.photos.size() > 1) throw wrong("--output " + options.output.string() + " is not a folder");
  check_ending(options.output);
}

}  // namespace

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  const char* const library = std::getenv("ONNXRUNTIME_LIBRARY");
  options.onnxruntime = library ? library : DEFAULT_ONNXRUNTIME;
  const std::map<std::string, std::function<void(const std::string&)>> valued = {
      {"--output", [&](const std::string& text) { options.output = text; }},
      {"-o", [&](const std::string& text) { options.output = text; }},
      {"--class", [&](const std::string& text) { options.target = text; }},
      {"--alpha", [&](const std::string& text) { options.look.alpha = number("--alpha", text, 0.0, 1.0); }},
      {"--colormap", [&](const std::string& text) { options.look.colormap = text; }},
      {"--top", [&](const std::string& text) { options.top = number("--top", text, 0, 1000); }},
      {"--threads", [&](const std::string& text) { options.threads = number("--threads", text, 1, 1024); }},
      {"--onnxruntime", [&](const std::string& text) { options.onnxruntime = text; }},
  };
  const std::map<std::string, bool*> flags = {
      {"--json", &options.json}, {"--serve", &options.serve}, {"--help", &options.help}};

  bool only_paths = false;  // behind "--"
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!only_paths && argument == "--") {
      only_paths = true;
    } else if (only_paths || argument.size() < 2 || argument[0] != '-') {
      if (options.graph.empty())
        options.graph = argument;
      else
        options.photos.emplace_back(argument);
    } else if (const auto flag = flags.find(argument); flag != flags.end()) {
      *flag->second = true;
    } else if (const auto option = valued.find(argument); option == valued.end()) {
      throw wrong(argument + ": there is no such option; --help lists them");
    } else if (++i == arguments.size()) {
      throw wrong(argument + " needs a value");
    } else {
      option->second(arguments[i]);
    }
  }
  if (options.help) return options;
  options.json |= options.serve;
  check(options);
  return options;
}

fs::path overlay_path(const Options& options, const fs::path& photo) {
  if (options.output.empty() || !fs::is_directory(options.output)) return options.output;
  const bool jpeg = has_jpeg && photo.extension() != ".ppm" && photo.extension() != ".pgm";
  fs::path name = photo.stem();
  name += jpeg ? "_explained.jpg" : "_explained.ppm";
  return options.output / name;
}
