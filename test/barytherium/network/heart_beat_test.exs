defmodule Barytherium.Network.HeartBeatTest do
  use ExUnit.Case, async: true
  import ExUnit.CaptureLog

  alias Barytherium.Network.HeartBeat

  defp agree(client, server), do: HeartBeat.agree(headers(client), headers(server))

  defp headers(nil), do: []
  defp headers(value), do: [{"heart-beat", value}, {"heart-beat", "1,1"}]

  test "the interval is the larger of the two values, or none if either is zero" do
    assert agree("100,200", "300,400") == {400, 300}
    assert agree("500,200", "100,400") == {500, 200}
    assert agree("0,200", "300,400") == {0, 300}
    assert agree("100,0", "300,400") == {400, 0}
    assert agree("100,200", "0,0") == {0, 0}
  end

  test "no header means no heart-beats, and spaces are tolerated" do
    assert agree(nil, "300,400") == {0, 0}
    assert agree("100,200", nil) == {0, 0}
    assert agree("10000, 10000", "10000 ,10000") == {10_000, 10_000}
  end

  test "a header that is not two numbers means no heart-beats, and is logged" do
    for value <- ["", "1", "1,2,3", "a,b", "-1,5", "1.5,2"] do
      assert capture_log(fn -> assert agree(value, "300,400") == {0, 0} end) =~ "heart-beat"
    end
  end
end
