defmodule Barytherium.RecordingTest do
  use ExUnit.Case, async: true

  alias Barytherium.{Directory, Frame, Recording}
  alias Barytherium.Recording.Writer

  @mib 1024 * 1024

  setup do
    %{path: Path.join(Directory.make!(), "feed.rec")}
  end

  defp message(body, headers \\ []) do
    length = {"content-length", "#{byte_size(body)}"}

    %Frame{
      command: :message,
      headers: [{"destination", "/topic/a"} | headers] ++ [length],
      body: body
    }
  end

  defp record(path, entries, limit \\ 1_000 * @mib) do
    {:ok, writer} = Writer.open(path, limit)
    {:ok, writer} = Writer.append(writer, entries)
    :ok = Writer.sync(writer)
    :ok = Writer.close(writer)
  end

  defp read(path, from \\ 0), do: path |> Recording.stream(from) |> Enum.to_list()

  test "frames are read as they were", %{path: path} do
    odd = [{"x", "1"}, {"x", "2"}, {"a:\n\\", "b:\r\n\\"}, {"blank", " "}, {"empty", ""}]

    frames = [
      %Frame{command: :connected, headers: [{"version", "1.2"}, {"server", "RabbitMQ/3.10.8"}]},
      message(for(byte <- 0..255, into: "", do: <<byte>>), odd),
      message(""),
      # Without a length, as ActiveMQ sends a text.
      %Frame{command: :message, headers: [{"destination", "/queue/a"}], body: "text\n\n"},
      %Frame{command: :message, headers: [{"destination", "/queue/a"}], body: ""},
      message(:binary.copy("x", 3 * @mib))
    ]

    entries = Enum.with_index(frames, fn frame, index -> {1_000_000 + index, frame} end)
    record(path, entries)
    assert read(path) == entries
    # A connection's body is nil or empty, and equal.
    assert Enum.map(read(path, 1_000_003), &elem(&1, 0)) == [1_000_003, 1_000_004, 1_000_005]
  end

  test "random frames are read as they were", %{path: path} do
    :rand.seed(:exsss, 26)
    bytes = fn most -> :rand.bytes(:rand.uniform(most + 1) - 1) end

    entries =
      for time <- 1..500 do
        headers = for _ <- 1..:rand.uniform(5), do: {<<?h>> <> bytes.(8), bytes.(20)}
        {time, message(bytes.(300), headers)}
      end

    for {chunk, _} <- entries |> Enum.chunk_every(70) |> Enum.with_index(),
        do: record(path, chunk)

    assert read(path) == entries
  end

  test "a recording that was torn anywhere is read up to there, and goes on from there", %{
    path: path
  } do
    entries = for time <- 1..3, do: {time, message("number #{time}")}
    record(path, entries)
    whole = File.read!(path)
    sizes = for {_time, _payload, size} <- Recording.part(path, 0), do: size

    for torn <- 9..(byte_size(whole) - 1) do
      File.write!(path, binary_part(whole, 0, torn))
      left = Enum.take(entries, Enum.count(sizes, &(&1 <= torn)))
      assert {torn, read(path)} == {torn, left}
      record(path, [{9, message("later")}])
      assert read(path) == left ++ [{9, message("later")}]
    end
  end

  test "a file that was torn in its first bytes is begun again", %{path: path} do
    for torn <- 0..8 do
      File.write!(path, binary_part("STOMPREC" <> <<1>>, 0, torn))
      record(path, [{1, message("first")}])
      assert [{1, _frame}] = read(path)
    end
  end

  test "a damaged record ends its file", %{path: path} do
    record(path, for(time <- 1..3, do: {time, message("number #{time}")}))
    whole = File.read!(path)
    {at, _length} = :binary.match(whole, "number 2")
    <<before::binary-size(at), _byte, rest::binary>> = whole
    File.write!(path, [before, "N", rest])
    assert [{1, _frame}] = read(path)
    # A size that no record has.
    File.write!(path, [binary_part(whole, 0, 9), <<0xFFFFFFFF::32>>, whole])
    assert read(path) == []
  end

  test "a file that has its size is followed by others, and each is continued", %{path: path} do
    entries = for time <- 1..30, do: {time, message("number #{time}")}
    for entry <- entries, do: record(path, [entry], 500)
    parts = Recording.parts(path)
    assert length(parts) > 2

    assert Enum.map(parts, &Path.basename/1) |> Enum.take(3) == [
             "feed.rec",
             "feed.2.rec",
             "feed.3.rec"
           ]

    assert Enum.all?(parts, &(File.stat!(&1).size < 700))
    assert read(path) == entries
    assert read(path, 25) == Enum.drop(entries, 24)
  end

  test "the index leads to a time, and may be missing or wrong", %{path: path} do
    entries = for time <- 1..40, do: {time, message(:binary.copy(<<time>>, 100_000))}
    for entry <- entries, do: record(path, [entry])
    assert [{0, 9}, {time, offset} | _more] = index = Recording.entries(path)
    assert length(index) in 3..5 and time > 5 and offset > @mib
    # What is read from there begins at most a MiB before.
    assert [{first, _payload, _end} | _more] = Enum.to_list(Recording.part(path, 30))
    assert first in 19..30
    assert Enum.map(read(path, 30), &elem(&1, 0)) == Enum.to_list(30..40)

    whole = File.read!(path)
    File.write!(path, binary_part(whole, 0, 2 * @mib))
    record(path, [{50, message("after")}])
    for n <- 1..20, do: record(path, [{50 + n, message(:binary.copy("x", 100_000))}])
    offsets = for {_time, _payload, ending} <- Recording.part(path, 0), do: ending
    for {_time, offset} <- tl(Recording.entries(path)), do: assert(offset in offsets)

    File.write!(Recording.index(path), "no index, and not even a whole number of entries")
    record(path, [{80, message("again")}])
    assert [{70, _}, {80, _}] = Enum.take(read(path), -2)
    File.rm!(Recording.index(path))
    assert [{70, _}, {80, _}] = read(path, 70)
  end

  test "what is no recording is refused, and left alone", %{path: path} do
    assert {:error, :enoent} = Recording.check(path)
    assert_raise File.Error, fn -> read(path) end

    for content <- ["not", "not a recording at all"] do
      File.write!(path, content)
      assert {:error, :not_a_recording} = Recording.check(path)
      assert {:error, :not_a_recording} = Writer.open(path, @mib)
      assert_raise ArgumentError, ~r/no recording/, fn -> read(path) end
      assert File.read!(path) == content
    end

    assert {:error, :enoent} = Writer.open("/no/such/directory/feed.rec", @mib)
  end
end
