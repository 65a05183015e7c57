// libjpeg reports errors by a call that must not return.  It jumps back to a frame in which nothing has a destructor
// that would be left out: what must be freed belongs to the caller of that frame.
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <jpeglib.h>  // needs <cstdio>

#include <jerror.h>

#include "failure.hpp"
#include "picture.hpp"

const bool has_jpeg = true;

namespace {

struct Errors {
  jpeg_error_mgr manager;  // first: libjpeg has a pointer to it only
  std::jmp_buf back;
  char message[JMSG_LENGTH_MAX];
};

Errors& errors_of(j_common_ptr codec) { return *reinterpret_cast<Errors*>(codec->err); }

[[noreturn]] void jump_back(j_common_ptr codec) {
  Errors& errors = errors_of(codec);
  errors.manager.format_message(codec, errors.message);
  std::longjmp(errors.back, 1);
}

// Of what libjpeg would go on with after a warning, data that ended early left part of the picture grey.
void on_message(j_common_ptr codec, int level) {
  const int code = codec->err->msg_code;
  if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER)) jump_back(codec);
}

jpeg_error_mgr* prepare(Errors& errors) {
  jpeg_error_mgr* const manager = jpeg_std_error(&errors.manager);
  manager->error_exit = jump_back;
  manager->emit_message = on_message;
  return manager;
}

// The EXIF orientation, 1 to 8, in an APP1 marker; 1 if it says nothing sensible.
int orientation_in(std::basic_string_view<std::uint8_t> data) {
  const auto byte = [&](size_t i) -> unsigned { return i < data.size() ? data[i] : 0; };
  constexpr std::string_view magic("Exif\0\0", 6);
  if (data.size() < 14 || std::string_view(reinterpret_cast<const char*>(data.data()), magic.size()) != magic) return 1;
  data.remove_prefix(magic.size());
  const bool little = byte(0) == 'I';
  const auto number = [&](size_t at, unsigned size) {
    size_t found = 0;
    for (unsigned i = 0; i < size; ++i) found |= static_cast<size_t>(byte(at + i)) << (8 * (little ? i : size - 1 - i));
    return found;
  };
  constexpr size_t ORIENTATION = 0x0112, ENTRY = 12;
  const size_t first = number(4, 4);
  for (size_t i = 0; i < number(first, 2); ++i)
    if (const size_t entry = first + 2 + ENTRY * i; number(entry, 2) == ORIENTATION) {
      const size_t found = number(entry + 8, 2);
      return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
    }
  return 1;
}

// As EXIF numbers them: bit by bit of a table, whether the axes are swapped, and columns or rows run backwards.
Picture upright(const Picture& stored, int orientation) {
  struct Turn {
    bool swap, back_columns, back_rows;  // of the stored picture
  };
  static constexpr Turn turns[9] = {{},
                                    {false, false, false},
                                    {false, true, false},
                                    {false, true, true},
                                    {false, false, true},
                                    {true, false, false},
                                    {true, false, true},
                                    {true, true, true},
                                    {true, true, false}};
  const Turn turn = turns[orientation];
  Picture picture{stored.height, stored.width, Bytes(stored.pixels.size())};
  if (turn.swap) std::swap(picture.height, picture.width);
  std::uint8_t* out = picture.pixels.data();
  for (size_t y = 0; y < picture.height; ++y)
    for (size_t x = 0; x < picture.width; ++x, out += 3) {
      const size_t row = turn.swap ? x : y, column = turn.swap ? y : x;
      const size_t from_row = turn.back_rows ? stored.height - 1 - row : row;
      const size_t from_column = turn.back_columns ? stored.width - 1 - column : column;
      const std::uint8_t* const source = stored.pixels.data() + 3 * (from_row * stored.width + from_column);
      for (int c = 0; c < 3; ++c) out[c] = source[c];
    }
  return picture;
}

// False: errors.message says why.
bool decode(const Bytes& file, jpeg_decompress_struct& codec, Errors& errors, Picture& picture, int& orientation) {
  if (setjmp(errors.back)) return false;
  jpeg_create_decompress(&codec);
  jpeg_mem_src(&codec, file.data(), static_cast<unsigned long>(file.size()));
  jpeg_save_markers(&codec, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&codec, TRUE);
  if (codec.image_width > MOST_PIXELS / codec.image_height) {
    std::snprintf(errors.message, sizeof errors.message, "the picture is larger than 100 megapixels");
    return false;
  }
  codec.out_color_space = JCS_RGB;
  for (jpeg_saved_marker_ptr marker = codec.marker_list; marker && orientation == 1; marker = marker->next)
    orientation = orientation_in({marker->data, marker->data_length});
  jpeg_start_decompress(&codec);
  picture.height = codec.output_height;
  picture.width = codec.output_width;
  picture.pixels.resize(3 * picture.height * picture.width);
  while (codec.output_scanline < codec.output_height) {
    JSAMPROW row = picture.pixels.data() + 3 * picture.width * codec.output_scanline;
    jpeg_read_scanlines(&codec, &row, 1);
  }
  jpeg_finish_decompress(&codec);
  return true;
}

bool encode(const Picture& picture, jpeg_compress_struct& codec, Errors& errors, unsigned char*& data, unsigned long& size) {
  if (setjmp(errors.back)) return false;
  jpeg_create_compress(&codec);
  jpeg_mem_dest(&codec, &data, &size);
  codec.image_width = static_cast<JDIMENSION>(picture.width);
  codec.image_height = static_cast<JDIMENSION>(picture.height);
  codec.input_components = 3;
  codec.in_color_space = JCS_RGB;
  jpeg_set_defaults(&codec);
  jpeg_set_quality(&codec, 92, TRUE);
  codec.comp_info[0].h_samp_factor = codec.comp_info[0].v_samp_factor = 1;  // subsampled chroma smears a heatmap's edges
  jpeg_start_compress(&codec, TRUE);
  while (codec.next_scanline < codec.image_height) {
    JSAMPROW row = const_cast<JSAMPROW>(picture.pixels.data() + 3 * picture.width * codec.next_scanline);
    jpeg_write_scanlines(&codec, &row, 1);
  }
  jpeg_finish_compress(&codec);
  return true;
}

}  // namespace

Picture decode_jpeg(const Bytes& file, const std::string& name) {
  Errors errors{};
  jpeg_decompress_struct codec{};
  codec.err = prepare(errors);
  const std::unique_ptr<jpeg_decompress_struct, void (*)(j_decompress_ptr)> owner(&codec, jpeg_destroy_decompress);
  Picture picture;
  int orientation = 1;
  if (!decode(file, codec, errors, picture, orientation)) throw Failure(Exit::picture, name + ": " + errors.message);
  return orientation == 1 ? picture : upright(picture, orientation);
}

Bytes encode_jpeg(const Picture& picture) {
  Errors errors{};
  jpeg_compress_struct codec{};
  codec.err = prepare(errors);
  const std::unique_ptr<jpeg_compress_struct, void (*)(j_compress_ptr)> owner(&codec, jpeg_destroy_compress);
  unsigned char* data = nullptr;
  unsigned long size = 0;
  // Memory ran out, if anything: then `data` may be what libjpeg has already freed.
  if (!encode(picture, codec, errors, data, size)) throw Failure(Exit::output, std::string("JPEG: ") + errors.message);
  const std::unique_ptr<unsigned char, void (*)(void*)> memory(data, std::free);
  return Bytes(data, data + size);
}
