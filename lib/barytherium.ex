defmodule Barytherium do
  @moduledoc """
  A STOMP client (1.0, 1.1 and 1.2) for high-volume feeds, whose frame parser and receive loop
  are native code.

  Start with `Barytherium.Network`, which connects and sends everything that happens to a process
  of yours, and `Barytherium.DefaultCallbackHandler`, an example of such a process.
  `Barytherium.TestBroker` is a small broker to try things with, and for tests.
  """
end
