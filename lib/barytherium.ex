defmodule Barytherium do
  @moduledoc """
  A STOMP client (1.0, 1.1 and 1.2) for high-volume feeds. Its frame parser and its receive loop
  are native code.

  Start with `Barytherium.Network`. It opens a connection and sends every event to a process of
  yours, the callback process. `Barytherium.DefaultCallbackHandler` is an example of one.
  `Barytherium.TestBroker` is a small broker for tests and experiments.
  """
end
