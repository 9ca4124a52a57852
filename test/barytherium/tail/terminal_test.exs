defmodule Barytherium.Tail.TerminalTest do
  use ExUnit.Case, async: true

  alias Barytherium.Tail.Terminal

  test "there are colours and rates on a terminal only, and no colours with NO_COLOR" do
    xterm = %{"TERM" => "xterm"}
    assert %{live: true, colors: true} = Terminal.new(true, xterm)
    assert %{live: true, colors: false} = Terminal.new(true, Map.put(xterm, "NO_COLOR", "1"))
    assert %{live: true, colors: true} = Terminal.new(true, Map.put(xterm, "NO_COLOR", ""))
    assert %{live: false, colors: false} = Terminal.new(false, xterm)
    assert %{live: false, colors: false} = Terminal.new(true, %{"TERM" => "dumb"})
    assert %{live: false, colors: false} = Terminal.new(true, %{})
  end
end
