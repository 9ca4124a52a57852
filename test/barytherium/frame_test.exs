defmodule Barytherium.FrameTest do
  use ExUnit.Case, async: true

  alias Barytherium.{Conformance, Frame, Memory, ParseError}
  alias Barytherium.Frame.ValueEncoding

  doctest Frame
  doctest ValueEncoding

  @commands ~w(stomp connect disconnect ack nack begin commit abort send subscribe unsubscribe
               connected error message receipt)a

  defp format(frame, version \\ "1.2"), do: IO.iodata_to_binary(Frame.format(frame, version))

  test "every command is formatted and parsed" do
    for command <- @commands do
      frame = %Frame{command: command, headers: [{"k", "v"}], body: ""}
      bytes = format(frame)
      assert bytes == String.upcase("#{command}") <> "\nk:v\n\n\0"
      assert {:ok, [^frame], _state} = Frame.parse_all(bytes)
    end
  end

  test "headers and body have defaults" do
    assert %Frame{command: :begin} == %Frame{command: :begin, headers: [], body: ""}
  end

  test "a body gets a content-length, unless there is one" do
    assert format(%Frame{command: :send, body: "a\0b"}) == "SEND\ncontent-length:3\n\na\0b\0"
    given = %Frame{command: :send, headers: [{"content-length", "3"}], body: "a\0b"}
    assert format(given) == "SEND\ncontent-length:3\n\na\0b\0"
    without = %Frame{command: :send, headers: [{"content-length", false}, {"a", "b"}], body: "c"}
    assert format(without) == "SEND\na:b\n\nc\0"
    assert_raise ArgumentError, ~r/has a NUL/, fn -> format(%{without | body: "a\0b"}) end

    twice = %{
      without
      | headers: [{"content-length", false}, {"content-length", "1"}],
        body: "long"
    }

    assert format(twice) == "SEND\n\nlong\0"
    mistake = %{without | headers: [{"content-length", nil}]}

    assert_raise ArgumentError, ~r/the content-length of this send is "nil"/, fn ->
      format(mistake)
    end
  end

  test "headers of any size are formatted" do
    value = String.duplicate(":", 1_000_000)
    frame = %Frame{command: :send, headers: [{"k", value}]}
    bytes = format(frame)
    assert byte_size(bytes) == byte_size("SEND\nk:\n\n\0") + 2_000_000
    state = Frame.parse_state(max_header_line: 3_000_000)
    assert {:ok, [^frame], _state} = Frame.parse_all(bytes, state)
    assert_raise ArgumentError, fn -> format(%{frame | headers: [{"k", value}, {"", ""}]}) end
  end

  test "headers are escaped by version" do
    frame = %Frame{command: :send, headers: [{"k:", "a\\\n\r"}]}
    assert format(frame) == "SEND\nk\\c:a\\\\\\n\\r\n\n\0"
    # A CR is data in 1.1.
    written = IO.iodata_to_binary(Frame.format(frame, "1.1"))
    assert written == "SEND\nk\\c:a\\\\\\n\r\n\n\0"
    assert {:ok, [^frame], _} = Frame.parse_all(written, Frame.parse_state(version: "1.1"))
    assert_raise ArgumentError, fn -> Frame.format(frame, "1.0") end
    connect = %Frame{command: :connect, headers: [{"passcode", "a:\\"}]}
    assert format(connect) == "CONNECT\npasscode:a:\\\\\n\n\0"
  end

  # The parser uses the terms of equal headers, and of equal ends of header lists, again for the next
  # frame.
  test "frames that repeat headers of the frame before are parsed as they were formatted" do
    first = %Frame{command: :message, headers: new_headers()}
    frames = Enum.scan(1..5_000, first, fn _n, before -> another(before) end)
    bytes = IO.iodata_to_binary(Enum.map(frames, &Frame.format/1))
    {:ok, parsed, _state} = Frame.parse_all(bytes)
    assert Enum.map(parsed, &without_length/1) == frames
  end

  # In most frames one header differs, in some the length of the body, in some everything.
  defp another(before) do
    case :rand.uniform(20) do
      1 -> %Frame{command: Enum.random([:message, :error]), headers: new_headers()}
      2 -> %{before | body: String.duplicate("x", Enum.random([0, 1, 64, 65]))}
      _ -> %{before | headers: another_header(before.headers)}
    end
  end

  defp new_headers, do: for(n <- 1..Enum.random([0, 4, 8])//1, do: header(n))

  defp another_header([]), do: []

  defp another_header(headers) do
    n = :rand.uniform(length(headers))
    List.replace_at(headers, n - 1, header(Enum.random([n, n, n, 9])))
  end

  defp header(n), do: {"name#{n}", Enum.random(["a", "b", "long", "c:\\"])}

  defp without_length(%Frame{body: ""} = frame), do: frame
  defp without_length(frame), do: %{frame | headers: Enum.drop(frame.headers, -1)}

  test "frames may be cut at every place" do
    bytes = "MESSAGE\r\nk:a\\cb\ncontent-length:3\n\na\0b\0\nRECEIPT\n\n\0"

    expected = [
      %Frame{command: :message, headers: [{"k", "a:b"}, {"content-length", "3"}], body: "a\0b"},
      %Frame{command: :receipt}
    ]

    for [left, right] <- Conformance.cuts(bytes) do
      {:ok, first, state} = Frame.parse_all(left)
      {:ok, rest, _state} = Frame.parse_all(right, state)
      assert first ++ rest == expected, "cut at #{byte_size(left)}"
    end
  end

  test "CONNECTED sets the version of the frames after it" do
    bytes = "CONNECTED\nsession:a\\b\n\n\0MESSAGE\nk:C:\\new\n\n\0"
    {:ok, [connected, message], _state} = Frame.parse_all(bytes)
    assert connected.headers == [{"session", "a\\b"}]
    assert message.headers == [{"k", "C:\\new"}]
  end

  test "an error has its rule, its offset, the frames before it, and a readable message" do
    {:ok, [], state} = Frame.parse_all("\nMESS")
    assert {:error, %ParseError{} = error} = Frame.parse_all("AGE\n\nhi\0MESSAGE\nk\n", state)
    assert %ParseError{rule: :header_without_colon, offset: 22, excerpt: "k"} = error
    assert [%Frame{command: :message, body: "hi"}] = error.frames
    assert Exception.message(error) == ~s(a header line without a colon, at byte 22: "k")
  end

  test "errors do not show credentials" do
    {:error, error} = Frame.parse_all("SEND\npasscode:hunter2\\t\n\n\0")
    assert error.rule == :undefined_escape
    refute Exception.message(error) =~ "hunter2"
  end

  test "limits and leniency are options" do
    parse = fn bytes, opts -> Frame.parse_all(bytes, Frame.parse_state(opts)) end
    rule = fn bytes, opts -> with {:error, error} <- parse.(bytes, opts), do: error.rule end

    assert rule.("SEND\n\nabcd\0", max_body: 3) == :body_too_large
    assert rule.("SEND\nk:v\n\n\0", max_header_line: 2) == :header_line_too_long
    assert rule.("SEND\nk:v\nk:v\n\n\0", max_headers: 1) == :too_many_headers

    assert {:ok, [%Frame{headers: [{"k", "\\t"}]}], _} =
             parse.("SEND\nk:\\t\n\n\0", escapes: :lenient)

    assert {:ok, [%Frame{headers: [{"k", "\\n"}]}], _} =
             parse.("SEND\nk:\\n\n\n\0", version: "1.0")
  end

  test "a frame does not keep the binary that it was parsed from" do
    big = String.duplicate("x", 100_000)
    bytes = "MESSAGE\n\n#{String.duplicate("y", 100)}\0MESSAGE\n\n#{big}\0"
    {:ok, [small, _big], _state} = Frame.parse_all(bytes)
    assert Memory.referenced(small.body) == 100
  end

  test "small bodies share a binary that is at most 8 times the smallest of them" do
    sizes = Enum.flat_map(1..400, &[65 + 7 * rem(&1, 5), 300, 65 * &1, 16_384, 40])
    data = for n <- sizes, do: "MESSAGE\n\n#{String.duplicate("x", n)}\0"
    data = IO.iodata_to_binary(data)

    {:ok, frames, _state} = Frame.parse_all(data)
    assert Enum.map(frames, &byte_size(&1.body)) == sizes

    referenced = for %{body: body} <- frames, do: Memory.referenced(body) / byte_size(body)

    assert Enum.max(referenced) <= 8
    assert Enum.count(referenced, &(&1 > 1)) > 400

    {:ok, frames, _state} = Frame.parse_all(data, Frame.parse_state(share_bodies: false))
    assert Enum.map(frames, &byte_size(&1.body)) == sizes
    assert Enum.all?(frames, &(Memory.referenced(&1.body) == byte_size(&1.body)))
  end

  test "a large body is not copied if it is most of the data, and copied otherwise" do
    for {body, others, referenced} <- [{100_000, 10, :data}, {100_000, 200_000, :own}] do
      others = ["MESSAGE\n\n", String.duplicate("y", others), 0]
      data = ["MESSAGE\n\n", String.duplicate("x", body), 0, others]
      data = IO.iodata_to_binary(data)
      {:ok, [frame, _other], _state} = Frame.parse_all(data)
      assert byte_size(frame.body) == body
      expected = if referenced == :data, do: byte_size(data), else: body
      assert Memory.referenced(frame.body) == expected
    end
  end

  # It would take minutes if parsing began again with each piece.
  test "20 MB in pieces of 1 KB are parsed, with and without a content-length" do
    piece = String.duplicate("0123456789abcdef", 64)
    expected = :binary.copy(piece, 20_000)

    for head <- ["MESSAGE\n\n", "MESSAGE\ncontent-length:#{byte_size(expected)}\n\n"] do
      {:ok, [], state} = Frame.parse_all(head)
      pieces = Stream.duplicate(piece, 20_000)

      state =
        Enum.reduce(pieces, state, fn piece, state ->
          {:ok, [], state} = Frame.parse_all(piece, state)
          state
        end)

      {:ok, [frame], _state} = Frame.parse_all("\0", state)
      assert frame.body == expected
    end
  end

  test "a parse state between frames may be used again, one in mid-frame only once" do
    {:ok, [_frame], between} = Frame.parse_all("MESSAGE\n\n\0")
    for _time <- 1..2, do: assert({:ok, [_frame], _} = Frame.parse_all("MESSAGE\n\n\0", between))
    {:ok, [], partial} = Frame.parse_all("MESS", between)
    assert {:ok, [_frame], _state} = Frame.parse_all("AGE\n\n\0", partial)
    assert_raise ArgumentError, ~r/newest/, fn -> Frame.parse_all("AGE\n\n\0", partial) end
  end

  test "only SEND, MESSAGE and ERROR are written with a body" do
    for command <- [:send, :message, :error],
        do: assert(to_string(Frame.format(%Frame{command: command, body: "x"})) =~ "\n\nx\0")

    for command <-
          ~w(stomp connect connected disconnect ack nack begin commit abort subscribe unsubscribe receipt)a do
      assert_raise ArgumentError, ~r/this #{command} has a body/, fn ->
        Frame.format(%Frame{command: command, body: "x"})
      end
    end
  end

  describe "acknowledging" do
    @message %Frame{
      command: :message,
      headers: [{"message-id", "m"}, {"subscription", "s"}, {"ack", "a"}, {"ack", "second"}]
    }

    for {version, headers} <- [
          {"1.0", [{"message-id", "m"}]},
          {"1.1", [{"message-id", "m"}, {"subscription", "s"}]},
          {"1.2", [{"id", "a"}]}
        ] do
      test "names the message as STOMP #{version} says" do
        expected = %Frame{command: :ack, headers: unquote(Macro.escape(headers))}
        assert Frame.ack(@message, unquote(version)) == expected
        assert Frame.acknowledgeable?(@message, unquote(version))
        refute Frame.acknowledgeable?(%Frame{command: :message}, unquote(version))
        refute Frame.acknowledgeable?(%{@message | command: :error}, unquote(version))
        extra = [{"receipt", "r"}]
        assert Frame.ack(@message, unquote(version), extra).headers == expected.headers ++ extra
      end
    end

    test "with NACK names it in the same way, and 1.0 has no NACK" do
      assert Frame.nack(@message) == %Frame{command: :nack, headers: [{"id", "a"}]}
      assert Frame.nack(@message, "1.1").headers == Frame.ack(@message, "1.1").headers
      assert_raise ArgumentError, ~r/no NACK/, fn -> Frame.nack(@message, "1.0") end
    end

    test "raises for a frame without the header, and names the header" do
      receipt = %Frame{command: :receipt}
      assert_raise ArgumentError, ~r/receipt has no header ack/, fn -> Frame.ack(receipt) end
    end

    test "uses the version that CONNECTED announces" do
      version = &Frame.version(%Frame{command: :connected, headers: &1})
      assert version.([]) == "1.0"
      assert version.([{"version", "1.1"}, {"version", "1.2"}]) == "1.1"
      assert version.([{"version", "1.3"}]) == "1.2"
    end
  end

  test "many headers are encoded on a dirty scheduler, however short they are" do
    many = %Frame{command: :send, headers: List.duplicate({"a", "b"}, 130_000)}
    on_exit(fn -> :erlang.trace_pattern({Barytherium.Native, :encode, 3}, false, []) end)
    :erlang.trace_pattern({Barytherium.Native, :encode, 3}, true, [])
    test = self()

    traced =
      spawn_link(fn ->
        receive do: (:go -> :ok)
        Frame.format(many)
        Frame.format(%Frame{command: :send})
        send(test, :formatted)
      end)

    :erlang.trace(traced, true, [:call, {:tracer, self()}])
    send(traced, :go)
    assert_receive :formatted, 5_000
    # The small frame is encoded on a normal scheduler, and no other frame is.
    assert_receive {:trace, ^traced, :call,
                    {Barytherium.Native, :encode, [[small], _version, :stream]}}

    assert small.headers == []
    refute_received {:trace, ^traced, :call, _encode}
  end
end
