defmodule Barytherium.Tail.BodyTest do
  use ExUnit.Case, async: true

  alias Barytherium.Tail.Body

  test "gzip is inflated, also if it consists of several parts" do
    assert Body.inflate("hello", 100) == {:plain, "hello"}
    assert Body.inflate(:zlib.gzip("hello"), 100) == {:inflated, "hello"}
    assert Body.inflate(:zlib.gzip(""), 100) == {:inflated, ""}
    assert Body.inflate(:zlib.gzip("hel") <> :zlib.gzip("lo"), 100) == {:inflated, "hello"}
  end

  test "what only begins like gzip stays as it is, and is called broken" do
    gzip = :zlib.gzip("hello")

    for size <- 0..(byte_size(gzip) - 1), part = binary_part(gzip, 0, size) do
      kind = if size < 3, do: :plain, else: :broken
      assert Body.inflate(part, 100) == {kind, part}
    end

    for bad <- [<<31, 139, 8, 1, 2, 3>>, gzip <> "trailing"] do
      assert Body.inflate(bad, 100) == {:broken, bad}
    end
  end

  test "a small body cannot inflate to gigabytes" do
    bomb = :zlib.gzip(:binary.copy(<<0>>, 20_000_000))
    assert {:partial, bytes} = Body.inflate(bomb, 100_000)
    assert byte_size(bytes) in 100_000..200_000
  end

  test "text is UTF-8 that hardly has control characters" do
    assert Body.kind("a\tb\r\n\e[1m é", true) == :text
    assert Body.kind("a\0", true) == :binary
    assert Body.kind(<<0xE9>>, true) == :binary
    # The beginning of a text may end in the middle of a character.
    assert Body.kind(<<?a, 0xC3>>, false) == :text
    assert Body.kind(<<?a, 0xC3>>, true) == :binary
    assert Body.kind(<<?a, 0xFF>>, false) == :binary
  end
end
