defmodule Bench.ElixirLoop do
  @moduledoc """
  The best receive loop in Elixir that we know how to write.

  It passes over each head once, byte by byte in a binary match, knows the common header names, and
  cuts names, values and bodies out of what was read without copying them. It knows the body's length
  from the head, and waits for all of a large body with one `recv`. Like `Bench.SplittingLoop` it unescapes where needed and
  checks nothing.
  """

  alias Barytherium.{Connection, Frame}

  # A body that lacks less than this is read along with what follows it.
  @large_body 65_536

  # As large as the driver takes in one call.
  @longest_recv 64 * 1024 * 1024

  def loop(socket, listener), do: loop(socket, listener, "", 0)

  defp loop(socket, listener, rest, missing) do
    length = if missing >= @large_body, do: min(missing, @longest_recv), else: 0

    case Connection.recv(socket, length, :infinity) do
      {:ok, bytes} ->
        {frames, rest, missing} = parse(join(rest, bytes))

        if frames != [],
          do: GenServer.cast(listener, {:barytherium, :frames, {frames, self()}})

        loop(socket, listener, rest, missing)

      {:error, _closed} ->
        :ok
    end
  end

  # `rest <> bytes` would make room for more, and copy into that.
  defp join("", bytes), do: bytes
  defp join(rest, bytes), do: IO.iodata_to_binary([rest, bytes])

  @doc "All frames in `bytes`, what is left, and how many bytes its body lacks, if that is known."
  def parse(bytes), do: next(bytes, bytes, 0, [])

  # `all` is what is parsed, and `at` where in it the frame starts.
  defp next(<<?\n, rest::binary>>, all, at, frames), do: next(rest, all, at + 1, frames)

  for {name, command} <- [
        {"MESSAGE\n", :message},
        {"CONNECTED\n", :connected},
        {"RECEIPT\n", :receipt},
        {"ERROR\n", :error}
      ] do
    defp next(<<unquote(name), rest::binary>>, all, at, frames),
      do:
        header(rest, all, {at, unquote(command), frames}, at + unquote(byte_size(name)), [], nil)
  end

  defp next(_partial, all, at, frames), do: partial(all, at, frames, 0)

  defp partial(all, at, frames, missing),
    do: {Enum.reverse(frames), binary_part(all, at, byte_size(all) - at), missing}

  # The line that starts at `start`.
  defp header(<<?\n, rest::binary>>, all, frame, start, headers, length),
    do: body(rest, all, frame, start + 1, headers, length)

  defp header(<<"content-length:", rest::binary>>, all, frame, start, headers, nil),
    do: digits(rest, all, frame, start + 15, 0, headers, 0)

  for name <- ~w(subscription destination message-id ack redelivered content-type) do
    defp header(<<unquote(name <> ":"), rest::binary>>, all, frame, start, headers, length) do
      start = start + unquote(byte_size(name) + 1)
      value(rest, all, frame, start, 0, headers, length, unquote(name))
    end
  end

  defp header(rest, all, frame, start, headers, length),
    do: name(rest, all, frame, start, 0, headers, length)

  defp name(<<?:, rest::binary>>, all, frame, start, size, headers, length) do
    name = binary_part(all, start, size)
    value(rest, all, frame, start + size + 1, 0, headers, length, name)
  end

  defp name(<<?\\, rest::binary>>, all, frame, start, size, headers, length),
    do: escaped(rest, all, frame, start, size + 1, headers, length)

  defp name(<<_byte, rest::binary>>, all, frame, start, size, headers, length),
    do: name(rest, all, frame, start, size + 1, headers, length)

  defp name("", all, {at, _command, frames}, _start, _size, _headers, _length),
    do: partial(all, at, frames, 0)

  defp value(<<?\n, rest::binary>>, all, frame, start, size, headers, length, name) do
    value = binary_part(all, start, size)
    header(rest, all, frame, start + size + 1, [{name, value} | headers], length)
  end

  defp value(<<?\\, rest::binary>>, all, frame, start, size, headers, length, name) do
    start = start - byte_size(name) - 1
    escaped(rest, all, frame, start, byte_size(name) + size + 2, headers, length)
  end

  defp value(<<_byte, rest::binary>>, all, frame, start, size, headers, length, name),
    do: value(rest, all, frame, start, size + 1, headers, length, name)

  defp value("", all, {at, _command, frames}, _start, _size, _headers, _length, _name),
    do: partial(all, at, frames, 0)

  # A line with a backslash in it.
  defp escaped(<<?\n, rest::binary>>, all, frame, start, size, headers, length) do
    [name, value] = all |> binary_part(start, size) |> :binary.split(":")
    headers = [{unescape(name), unescape(value)} | headers]
    header(rest, all, frame, start + size + 1, headers, length)
  end

  defp escaped(<<_byte, rest::binary>>, all, frame, start, size, headers, length),
    do: escaped(rest, all, frame, start, size + 1, headers, length)

  defp escaped("", all, {at, _command, frames}, _start, _size, _headers, _length),
    do: partial(all, at, frames, 0)

  # The text between two escapes is copied as a whole.
  defp unescape(text) do
    case :binary.split(text, "\\") do
      [text] -> text
      [plain, rest] -> IO.iodata_to_binary([plain | unescaped(rest)])
    end
  end

  defp unescaped("n" <> rest), do: ["\n", unescape(rest)]
  defp unescaped("r" <> rest), do: ["\r", unescape(rest)]
  defp unescaped("c" <> rest), do: [":", unescape(rest)]
  defp unescaped("\\" <> rest), do: ["\\", unescape(rest)]

  defp digits(<<?\n, rest::binary>>, all, frame, start, size, headers, length) do
    headers = [{"content-length", binary_part(all, start, size)} | headers]
    header(rest, all, frame, start + size + 1, headers, length)
  end

  defp digits(<<digit, rest::binary>>, all, frame, start, size, headers, length),
    do: digits(rest, all, frame, start, size + 1, headers, length * 10 + digit - ?0)

  defp digits("", all, {at, _command, frames}, _start, _size, _headers, _length),
    do: partial(all, at, frames, 0)

  defp body(rest, all, {at, command, frames}, start, headers, nil) do
    case :binary.match(rest, <<0>>) do
      {size, 1} -> frame(all, command, start, size, headers, frames)
      :nomatch -> partial(all, at, frames, 0)
    end
  end

  defp body(_rest, all, {_at, command, frames}, start, headers, length)
       when start + length < byte_size(all),
       do: frame(all, command, start, length, headers, frames)

  defp body(_rest, all, {at, _command, frames}, start, _headers, length),
    do: partial(all, at, frames, start + length + 1 - byte_size(all))

  defp frame(all, command, start, size, headers, frames) do
    body = binary_part(all, start, size)
    frame = %Frame{command: command, headers: :lists.reverse(headers), body: body}
    after_body = start + size + 1
    rest = binary_part(all, after_body, byte_size(all) - after_body)
    next(rest, all, after_body, [frame | frames])
  end
end
