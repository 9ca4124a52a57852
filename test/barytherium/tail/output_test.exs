defmodule Barytherium.Tail.OutputTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO

  alias Barytherium.Frame
  alias Barytherium.Tail.{Options, Output, Terminal}

  @terminal %Terminal{live: true, colors: false}
  @pipe %Terminal{live: false, colors: false}

  defp output(args, terminal) do
    {:ok, options} = Options.parse(args)
    Output.new(options, terminal)
  end

  defp messages(output, numbers) do
    headers = [{"destination", "/queue/a"}]
    frames = for n <- numbers, do: %Frame{command: :message, headers: headers, body: "body #{n};"}
    {:ok, output} = Output.messages(output, frames, ~U[2024-05-06 07:08:09.012345Z])
    output
  end

  defp shown(text),
    do: for([_all, n] <- Regex.scan(~r/body (\d+);/, text), do: String.to_integer(n))

  test "a terminal gets five messages a second, and then how many it did not get" do
    output = output(["stomp://h/queue/a"], @terminal)

    text =
      capture_io(fn ->
        output
        |> messages(1..3)
        |> messages(4..10)
        |> messages(11..12)
        |> Output.second("rates")
        |> messages([13])
      end)

    assert shown(text) == [1, 2, 3, 4, 5, 13]
    assert text =~ "... 7 messages not shown (--all shows them)"
  end

  test "all messages go to a pipe, and to a terminal with --all, --count or another format" do
    for {args, terminal} <- [
          {[], @pipe},
          {["--all"], @terminal},
          {["--count", "20"], @terminal},
          {["--format", "json"], @terminal}
        ] do
      output = output(["stomp://h/queue/a" | args], terminal)
      assert shown(capture_io(fn -> messages(output, 1..10) end)) == Enum.to_list(1..10)
    end

    # A feed of its own is for looking at.
    assert shown(capture_io(fn -> messages(output([], @pipe), 1..10) end)) == [1, 2, 3, 4, 5]
  end

  test "the last line of a terminal has the rates, and is erased before anything else is written" do
    output = output(["stomp://h/queue/a"], @terminal)
    text = capture_io(fn -> output |> Output.second("rates") |> messages([1]) end)
    assert "\r\e[Krates\r\e[K==> /queue/a" <> _rest = text
    assert String.ends_with?(text, "\n\nrates")

    text =
      capture_io(fn ->
        output = Output.second(output, "rates")
        assert capture_io(:stderr, fn -> Output.notice(output, "news") end) == "news\n"
      end)

    assert text == "\r\e[Krates\r\e[K"
  end

  test "a pipe gets no rates and no notices" do
    output = output(["stomp://h/queue/a"], @pipe)

    assert capture_io(fn ->
             output = Output.second(output, "rates")
             capture_io(:stderr, fn -> Output.notice(output, "news") end)
           end) == ""
  end
end
