defmodule Barytherium.DifferentialTest do
  @moduledoc """
  Compares decoding and encoding with independent implementations. Where they differ,
  `guides/conformance.md` has to say who is right.
  """
  use ExUnit.Case, async: false

  alias Barytherium.{Conformance, Frame, OtherParsers}

  @moduletag real_broker: :rabbitmq

  @guide Path.expand("../../guides/conformance.md", __DIR__)

  # The number of generated frames. They are the same in each run.
  @generated 2_000

  setup do
    %{stomp_py: OtherParsers.start!()}
  end

  describe "the conformance cases" do
    # RabbitMQ is a server, so it gets SEND instead of MESSAGE.
    test "are decoded differently by RabbitMQ only where the guide says so" do
      differing =
        for case <- cases(),
            bytes = String.replace(case.input, "MESSAGE", "SEND"),
            OtherParsers.rabbitmq(bytes) != ours(bytes, case),
            do: case.name

      assert Enum.sort(differing) == explained("RabbitMQ")
    end

    test "are decoded differently by stomp.py only where the guide says so", %{stomp_py: port} do
      differing =
        for case <- cases(),
            OtherParsers.stomp_py(port, case.input) != ours(case.input, case),
            do: case.name

      assert Enum.sort(differing) == explained("stomp.py")
    end
  end

  describe "generated frames" do
    setup do
      :rand.seed(:exsss, {1, 2, 3})
      %{frames: for(_number <- 1..@generated, do: generate())}
    end

    test "that we encode are decoded correctly by both", %{frames: frames, stomp_py: port} do
      for frame <- frames, expected = {[read_back(frame)], false} do
        bytes = format(frame)
        assert OtherParsers.rabbitmq(bytes) == expected
        assert OtherParsers.stomp_py(port, bytes) == expected
      end
    end

    test "that they encode are decoded correctly by us", %{frames: frames, stomp_py: port} do
      for {command, headers, body} = frame <- frames do
        assert {[{^command, read, ^body}], false} = parse(OtherParsers.rabbitmq_format(frame))
        assert Map.delete(read, "content-length") == Map.new(headers)

        # In stomp.py the connection escapes, which is not used here. No content-length is added either.
        plain = for {name, value} <- headers, do: {plain(name), plain(value)}
        body = String.replace(body, <<0>>, "")
        bytes = OtherParsers.stomp_py_format(port, {command, plain, body})
        assert parse(bytes) == {[{command, Map.new(plain), body}], false}
      end
    end
  end

  # The cases for 1.2 with default options. The others have neither other options nor other versions.
  defp cases do
    for %{options: []} = case <- Conformance.decoding(),
        Enum.any?(case.versions, &(&1 in [nil, "1.2"])),
        not match?({:unexpected_first_frame, _offset}, case.error),
        do: case
  end

  defp ours(bytes, case), do: parse(bytes, if(nil in case.versions, do: nil, else: "1.2"))

  defp parse(bytes, version \\ "1.2") do
    case Frame.parse_all(bytes, Frame.parse_state(version: version)) do
      {:ok, frames, _state} -> {Enum.map(frames, &comparable/1), false}
      {:error, error} -> {Enum.map(error.frames, &comparable/1), true}
    end
  end

  defp comparable(%Frame{} = frame) do
    command = frame.command |> to_string() |> String.upcase()
    {command, Frame.headers_to_map(frame.headers), frame.body}
  end

  defp read_back({command, headers, ""}), do: {command, Map.new(headers), ""}

  defp read_back({command, headers, body}) do
    length = body |> byte_size() |> to_string()
    {command, headers |> Map.new() |> Map.put("content-length", length), body}
  end

  defp format({command, headers, body}) do
    command = command |> String.downcase() |> String.to_existing_atom()
    frame = %Frame{command: command, headers: headers, body: body}
    IO.iodata_to_binary(Frame.format(frame))
  end

  # Always SEND, because RabbitMQ reads a content-length only there. Headers are UTF-8, because stomp.py
  # takes only text in headers.
  defp generate do
    names = Enum.uniq(for _header <- 1..:rand.uniform(6), do: text("abc:\\\n\r日-", 1))
    headers = for name <- names, do: {name, text("xyz :\\\n\rü0", 0)}
    {"SEND", headers, random_body(:rand.uniform(3))}
  end

  defp text(characters, least) do
    characters = String.codepoints(characters)
    for _n <- 1..(least + :rand.uniform(8))//1, into: "", do: Enum.random(characters)
  end

  defp random_body(1), do: ""
  defp random_body(_more), do: :rand.bytes(:rand.uniform(200))

  defp plain(text), do: String.replace(text, [":", "\\", "\n", "\r"], ".")

  # The names of cases in the guide's rows about `who`.
  defp explained(who) do
    names =
      for line <- @guide |> File.read!() |> String.split("\n"),
          String.starts_with?(line, "| #{who} |"),
          [name] <- Regex.scan(~r/`([^` ]+)`(?=[^|]*\|$)/, line, capture: :all_but_first),
          do: name

    Enum.sort(names)
  end
end
