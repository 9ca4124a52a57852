defmodule Barytherium.Tail.JsonTest do
  use ExUnit.Case, async: true

  alias Barytherium.Tail.Json

  defp indent(text) do
    with {:ok, out} <- Json.indent(text), do: IO.iodata_to_binary(out)
  end

  test "objects and arrays are indented, and tokens stay as they are" do
    assert indent(
             ~s( {"a" : [1,-2.50e+3, true,null] ,"b":{"c":"x\\u00e9 \\" {,}"},"a":[],"d":{ }}\n)
           ) ==
             """
             {
               "a": [
                 1,
                 -2.50e+3,
                 true,
                 null
               ],
               "b": {
                 "c": "x\\u00e9 \\" {,}"
               },
               "a": [],
               "d": {}
             }
             """
             |> String.trim_trailing("\n")
  end

  test "scalars are JSON" do
    for text <- ["0", "-1.5E-3", "true", "false", "null", ~s("")],
        do: assert(indent(text) == text)
  end

  test "what is not JSON is refused" do
    for text <- [
          "",
          " ",
          "{",
          "}",
          "[1",
          "[1,]",
          "[,1]",
          "[1 2]",
          "[1}",
          ~s({"a"}),
          ~s({"a":}),
          ~s({"a":1,}),
          ~s({a:1}),
          ~s({1:1}),
          "[] []",
          "[01]",
          "[1.]",
          "[.5]",
          "[+1]",
          "[1e]",
          "[NaN]",
          "[truex]",
          ~s(["a),
          ~s(["a\\"]),
          ~s(["\\x"]),
          ~s(["\\u12g4"]),
          ~s(["\\u123\n"]),
          ~s(["a\nb"])
        ] do
      assert {text, indent(text)} == {text, :error}
    end
  end

  test "every beginning of a text is refused, and laying out twice changes nothing" do
    text = ~s([{"a":[true,-1.5e3,"\\u00e9"]},{"b":{}}])
    for size <- 0..(byte_size(text) - 1), do: assert(indent(binary_part(text, 0, size)) == :error)
    assert text |> indent() |> indent() == indent(text)
    assert text |> indent() |> String.replace(~r/\s/, "") == text
  end

  test "100 containers deep is possible, and one more is not" do
    nested = &(String.duplicate("[", &1) <> String.duplicate("]", &1))
    assert indent(nested.(100)) =~ "[]"
    assert indent(nested.(101)) == :error
    assert indent(String.duplicate("[", 1_000_000)) == :error
  end

  test "strings are encoded without control characters" do
    string = &(&1 |> Json.string() |> IO.iodata_to_binary())
    assert string.(~s(a"b\\c\n\r\t)) == ~S("a\"b\\c\n\r\t")
    assert string.("\e\0\u009b\u202e é") == ~S("\u001b\u0000\u009b\u202e é")
    assert string.(<<0xE9>>) == ~s("é")
  end
end
