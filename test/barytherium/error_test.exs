defmodule Barytherium.ErrorTest do
  use ExUnit.Case, async: true

  alias Barytherium.{Error, Frame}

  defp message(reason), do: reason |> Error.new() |> Exception.message()

  test "a reason is a sentence, and its name" do
    assert message(:closed) == "the connection was closed (closed)"
    assert message(:econnrefused) == "connection refused (econnrefused)"
    assert message(:unknown_ca) == "the connection failed (unknown_ca)"
  end

  test "an ERROR frame is kept, and the message has its texts on one line" do
    error = &%Frame{command: :error, headers: &1, body: &2}
    assert %Error{reason: :refused, frame: %Frame{}} = Error.new(error.([], ""))
    assert message(error.([{"message", "no"}], "")) == "the broker says: no"
    assert message(error.([{"message", "no"}], "no\nmore")) == "the broker says: no"
    assert message(error.([{"message", "a\nb"}], "why\nstack")) == "the broker says: a\\nb: why"
    assert byte_size(message(error.([], String.duplicate("x", 5_000)))) < 600
  end
end
