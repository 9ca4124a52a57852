defmodule Barytherium.DemoTest do
  @moduledoc "script/demo, as a pipe sees it. A terminal gets the board instead of the lines."
  use ExUnit.Case, async: false

  # It waits for other programs most of the time, see `script/test`.
  @moduletag :programs
  @moduletag timeout: 60_000

  defp demo(args) do
    mix = System.find_executable("mix")
    args = ["run", "--no-compile", "demo/demo.exs" | args]

    options = [
      :binary,
      :exit_status,
      :stderr_to_stdout,
      args: args,
      env: [{~c"MIX_ENV", ~c"test"}]
    ]

    Port.open({:spawn_executable, mix}, options)
  end

  defp output(port, text \\ "") do
    receive do
      {^port, {:data, data}} -> output(port, text <> data)
      {^port, {:exit_status, status}} -> {status, text}
    end
  end

  defp await(port, expected, text \\ "") do
    if text =~ expected do
      text
    else
      receive do: ({^port, {:data, data}} -> await(port, expected, text <> data))
    end
  end

  test "shows trains and rates, and how fast this machine is" do
    {0, text} = output(demo(~w(--seconds 2 --rate 100)))

    assert text =~
             ~r/^C\d+ to .* leaves at \d\d:\d\d \((on time|planned \d\d:\d\d)\), platform \d+$/m or
             text =~ ~r/^  C\d+ to .* leaves at \d\d:\d\d/m

    assert text =~
             ~r{^\d+ messages/s, .*B/s; \d+ us a message, broker included; \d+ MiB; 99 % within \d+ us; 0 missing$}m

    assert text =~
             ~r/This machine receives and inflates [\d,]+ of these messages a second, \d+\.\d times as many/

    refute text =~ "\e"
  end

  test "ends at once at a signal" do
    port = demo(~w(--seconds 60 --rate 100))
    await(port, "leaves at")
    {:os_pid, pid} = Port.info(port, :os_pid)
    {_output, 0} = System.cmd("kill", ["-TERM", to_string(pid)])
    {143, _text} = output(port)
  end

  test "refuses what it does not know" do
    assert {2, "Usage: " <> _text} = output(demo(["--secnds", "1"]))
    assert {2, "--seconds is from 1" <> _text} = output(demo(["--seconds", "0"]))
  end
end
