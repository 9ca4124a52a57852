defmodule Barytherium.Tail.FormatTest do
  use ExUnit.Case, async: true

  alias Barytherium.Frame
  alias Barytherium.Tail.Format
  alias Barytherium.Text

  @time ~U[2024-05-06 07:08:09.012345Z]
  @plain %{all: false, colors: false}

  defp frame(body, headers \\ [{"destination", "/queue/a"}]),
    do: %Frame{command: :message, headers: headers, body: body}

  defp show(format, frame, style \\ @plain),
    do: format |> Format.message(frame, @time, style) |> IO.iodata_to_binary()

  test "pretty: headers, and indented JSON out of gzip" do
    body = :zlib.gzip(~s({"a":[1]}))
    headers = [{"destination", "/queue/a"}, {"x", "1"}, {"x", "2"}]

    assert show(:pretty, frame(body, headers)) == """
           ==> /queue/a <== 07:08:09.012, #{byte_size(body)} bytes (gzip of 9)
           x: 1
           x: 2

           {
             "a": [
               1
             ]
           }

           """
  end

  test "pretty: text, binary, and no body" do
    assert show(:pretty, frame("hello\nworld\n")) =~ ", 12 bytes\n\nhello\nworld\n\n"
    assert show(:pretty, frame("{no json}")) =~ "\n\n{no json}\n\n"
    assert show(:pretty, frame(<<0, 1>>)) =~ "\n\n00000000: 0001  "
    assert show(:pretty, frame("")) =~ ", 0 bytes\n\n\n"
    assert show(:pretty, frame("a", [])) =~ "==> ? <=="
  end

  test "pretty: large bodies are cut, unless all is to be shown" do
    text = String.duplicate("a", 4096)
    refute show(:pretty, frame(text)) =~ "more bytes"
    assert show(:pretty, frame(text <> "b")) =~ "a\n... 1 more bytes (--all shows them)\n"
    # A character that is cut through is not shown.
    assert show(:pretty, frame("a" <> String.duplicate("é", 3000))) =~ "é\n... 1905 more bytes"
    binary = :binary.copy(<<0>>, 513)
    assert show(:pretty, frame(binary)) =~ "... 1 more bytes"
    refute show(:pretty, frame(binary), %{@plain | all: true}) =~ "more bytes"

    bomb = :zlib.gzip(String.duplicate("a", 2_000_000))
    assert show(:pretty, frame(bomb)) =~ "(gzip of more than 10"
    assert show(:pretty, frame(bomb), %{@plain | all: true}) =~ "(gzip of 2000000)"
  end

  test "pretty and json let no control character of the peer through" do
    evil = "\e]0;title\a\u009b2J\u202e"
    json = ~s({"a":"\u009b\u202e"})

    for format <- [:pretty, :json], body <- [evil, json, :zlib.gzip(evil), <<0, 0x9B>> <> evil] do
      shown = show(format, frame(body, [{"destination", evil}, {evil, evil <> "\n\t\r"}]))
      assert String.valid?(shown)
      refute shown |> String.to_charlist() |> Enum.any?(&(Text.unsafe?(&1) and &1 != ?\n))
    end
  end

  test "pretty: colours only if wanted" do
    refute show(:pretty, frame("hello")) =~ "\e"
    assert show(:pretty, frame("hello"), %{@plain | colors: true}) =~ "\e[36m==> /queue/a"
  end

  test "json: one line, with the body as text or in Base64" do
    headers = [{"destination", "/queue/a"}, {"x", "1"}, {"x", "2"}]

    assert show(:json, frame("a\n\"é", headers)) ==
             ~S({"time":"2024-05-06T07:08:09.012345Z","headers":{"destination":"/queue/a","x":"1"},) <>
               ~S("body":"a\n\"é"}) <> "\n"

    assert show(:json, frame(<<0, 255>>)) =~ ~S(,"body_base64":"AP8="})
    assert show(:json, frame(:zlib.gzip("hi"))) =~ ~S(,"gzip":true,"body":"hi"})
    assert show(:json, frame("", [])) =~ ~S("headers":{},"body":""})
  end

  test "raw: the body and nothing else" do
    body = :zlib.gzip("hello")
    assert show(:raw, frame(body)) == body
  end

  test "saved messages have the body as it came" do
    body = :zlib.gzip("hello")
    saved = body |> frame() |> Format.saved(@time) |> IO.iodata_to_binary()
    assert [_all, base64] = Regex.run(~r/"body_base64":"([^"]*)"}\n\z/, saved)
    assert Base.decode64!(base64) == body
  end

  test "a traced frame is one line of text, whatever its headers are" do
    frame = %Frame{command: :send, headers: [{"a", <<255, ?\n, ?b>>}], body: <<255>>}
    line = Format.trace(:sent, frame)
    assert line =~ ~r/^> SEND a:.*b \(1 bytes\)$/
    assert String.valid?(line)
  end
end
